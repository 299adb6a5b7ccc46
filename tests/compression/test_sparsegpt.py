"""SparseGPT: that of plain numpy, input by input, and closer to the outputs than scores alone."""

import jax.numpy as jnp
import numpy as np
import pytest

from lmjax.compression.one_shot import OneShot
from lmjax.compression.sparsegpt import DAMPING, prune
from lmjax.parallel.sharding import is_partitioned
from lmjax.state import named_parameters
from lmjax.testing import fake_batch, init_params
from lmjax.utils import pytree
from tests.families import tiny_task


def numpy_sparsegpt(weights, hessian, sparsity, of):
  """The algorithm as it is written: after each input, the inverse Hessian of those that are left; float64."""
  inputs, outputs = weights.shape
  hessian = hessian + DAMPING * np.diag(hessian).mean() * np.eye(inputs)
  weights, diagonal, lost = weights.copy(), np.zeros(inputs), np.zeros(weights.shape, bool)
  for i in range(inputs):
    diagonal[i] = np.linalg.inv(hessian[i:, i:])[0, 0]
  for i in range(inputs):
    if i % (of or inputs) == 0:
      rows = slice(i, i + (of or inputs))
      scores = weights[rows] ** 2 / diagonal[rows, None]
      if of:
        lost[rows] = np.argsort(np.argsort(scores, axis=0), axis=0) < of // 2
      else:
        lost[rows] = scores <= np.sort(scores.reshape(-1))[round(sparsity * scores.size) - 1]
    inverse = np.linalg.inv(hessian[i:, i:])
    weights[i:] -= inverse[:, :1] / inverse[0, 0] * np.where(lost[i], weights[i], 0.0)
  return np.where(lost, 0.0, weights)


@pytest.mark.parametrize("of", [0, 4])
def test_it_is_that_of_numpy_and_keeps_the_outputs(of):
  """Also with inputs that are hardly independent, and one that is always zero."""
  rng = np.random.default_rng(of)
  x = rng.standard_normal((200, 6)) @ rng.standard_normal((6, 16)) + 0.3 * rng.standard_normal((200, 16))
  x[:, 3] = 0.0
  weights, hessian = rng.standard_normal((16, 5)), x.T @ x
  structure = f"{of // 2}:{of}" if of else "layer"
  pruned = np.asarray(prune(jnp.asarray(weights, jnp.float32), jnp.asarray(hessian, jnp.float32), 0.5, structure))
  np.testing.assert_allclose(pruned, numpy_sparsegpt(weights, hessian, 0.5, of), atol=2e-4)
  assert np.mean(pruned == 0) == 0.5
  if of:
    assert np.all(np.sum((pruned == 0).reshape(-1, of, 5), axis=1) == of // 2)
  lost = lambda kernel: np.linalg.norm(x @ (kernel - weights))  # noqa: E731
  assert lost(pruned) < 0.9 * lost(np.where(pruned == 0, 0.0, weights)), "the weights that stay make up for the others"


def test_independent_inputs_of_one_size_are_pruned_by_magnitude():
  weights = np.random.default_rng(0).standard_normal((64, 8)).astype(np.float32)
  pruned = np.asarray(prune(jnp.asarray(weights), jnp.eye(64), 0.25, "layer"))
  limit = np.sort(np.abs(weights).reshape(-1))[128]
  np.testing.assert_allclose(pruned, np.where(np.abs(weights) < limit, 0.0, weights), atol=1e-6)


@pytest.mark.long
def test_a_model_is_pruned_in_its_layers():
  """By what its kernels read; stacked layers each by their own."""
  task = tiny_task("GPT")
  batch = fake_batch(task)
  named = pytree.named_leaves(named_parameters(task, 1, 16), is_leaf=is_partitioned)
  arrays = pytree.named_leaves(init_params(task, batch))
  boxes = {name: box.replace(value=arrays[name]) for name, box in named.items()}
  pruned = OneShot(0.5, "sparsegpt", targets="mlp/").apply(task, boxes, batch)
  for name, array in pruned.items():
    if "mlp/" in name and name.endswith("kernel"):
      zeros = np.asarray(array == 0).reshape(3, -1)
      np.testing.assert_array_equal(zeros.mean(axis=1), 0.5)
      assert np.any(np.asarray(array)[np.asarray(array) != 0] != np.asarray(arrays[name])[np.asarray(array) != 0])
    else:
      assert array is arrays[name]


def test_structures_are_checked():
  for structure in ("output", "global"):
    with pytest.raises(ValueError, match="SparseGPT compares the weights of a layer"):
      OneShot(0.5, "sparsegpt", structure)
