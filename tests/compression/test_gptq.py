"""GPTQ: that of plain numpy, input by input, and closer to the outputs than rounding to the nearest."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lmjax.compression.gptq import CLIPS, GPTQ, round_in_turn
from lmjax.compression.quantize import DTYPES, QTensor, Quantize, quantize
from lmjax.parallel.sharding import is_partitioned
from lmjax.state import named_parameters
from lmjax.testing import fake_batch, init_params
from lmjax.utils import pytree
from lmjax.utils.errors import UserError
from tests.families import tiny_task


def numpy_gptq(weights, hessian, groups, top, symmetric, damping):
  """The algorithm as it is written: after each input, the inverse Hessian of those that are left; float64."""
  inputs, outputs = weights.shape
  size, importance = inputs // groups, np.diag(hessian)
  scales, offsets = (np.zeros((inputs, outputs)) for _ in range(2))
  round_to = lambda x, s, o: np.clip(np.round((x - o) / s), -top - (not symmetric), top) * s + o  # noqa: E731
  for group in range(groups):
    rows = slice(group * size, (group + 1) * size)
    for output in range(outputs):
      x, best = weights[rows, output], np.inf
      low, high = (-np.abs(x).max(), np.abs(x).max()) if symmetric else (x.min(), x.max())
      for clip in CLIPS:
        middle, half = (low + high) / 2, clip * (high - low) / 2
        scale = 2 * half / (2 * top + (not symmetric)) or 1.0
        offset = 0.0 if symmetric else middle - half + (top + 1) * scale
        error = np.sum(importance[rows] * (x - round_to(x, scale, offset)) ** 2)
        if error < best:
          best, scales[rows, output], offsets[rows, output] = error, scale, offset
  left, hessian = list(np.argsort(-importance, kind="stable")), hessian + damping * importance.mean() * np.eye(inputs)
  weights, rounded = weights.copy(), np.zeros_like(weights)
  while left:
    first, inverse = left[0], np.linalg.inv(hessian[np.ix_(left, left)])
    rounded[first] = round_to(weights[first], scales[first], offsets[first])
    weights[left] -= inverse[:, :1] / inverse[0, 0] * (weights[first] - rounded[first])
    left = left[1:]
  return rounded


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("groups", [1, 4])
def test_it_is_gptq_of_numpy_and_keeps_the_outputs(symmetric, groups):
  """Also with inputs that are hardly independent, and one that is always zero."""
  rng = np.random.default_rng(groups)
  x = rng.standard_normal((200, 6)) @ rng.standard_normal((6, 16)) + 0.3 * rng.standard_normal((200, 16))
  x[:, 3] = 0.0
  weights, hessian = rng.standard_normal((16, 5)), x.T @ x
  arguments = (jnp.asarray(weights, jnp.float32), jnp.asarray(hessian, jnp.float32), groups)
  values, scale, offset = round_in_turn(*arguments, "int4", symmetric, 0.01)
  leaf = QTensor(values, scale, None if symmetric else offset)
  dense = np.asarray(leaf.dense(jnp.float32), np.float64)
  expected = numpy_gptq(weights, hessian, groups, DTYPES["int4"], symmetric, 0.01)
  lost = lambda kernel: np.linalg.norm(x @ (kernel - weights))  # noqa: E731
  np.testing.assert_allclose(dense, expected, atol=1e-4)
  nearest = quantize(jnp.asarray(weights, jnp.float32), (groups, 5), "int4", symmetric).dense(jnp.float32)
  assert lost(dense) < 0.9 * lost(np.asarray(nearest, np.float64))


def test_zeros_of_a_pruned_kernel_stay_and_the_others_make_up_for_it():
  rng = np.random.default_rng(1)
  x = rng.standard_normal((200, 6)) @ rng.standard_normal((6, 64)) + 0.3 * rng.standard_normal((200, 64))
  kept = rng.random((64, 5)) < 0.5
  weights, hessian = rng.standard_normal((64, 5)) * kept, x.T @ x
  arguments = (jnp.asarray(weights, jnp.float32), jnp.asarray(hessian, jnp.float32), 4)
  values, scale, _ = round_in_turn(*arguments, "int4", True, 0.01)
  dense = np.asarray(QTensor(values, scale).dense(jnp.float32), np.float64)
  assert not dense[~kept].any() and dense[kept].any()
  nearest = np.asarray(quantize(arguments[0], (4, 5), "int4").dense(jnp.float32), np.float64)
  assert np.linalg.norm(x @ (dense - weights)) < 0.9 * np.linalg.norm(x @ (nearest - weights))


def test_offsets_are_refused_where_they_would_lose_zeros():
  task = tiny_task("GPT")
  named = pytree.named_leaves(named_parameters(task, 2, 16), is_leaf=is_partitioned)
  params = pytree.named_leaves(init_params(task, fake_batch(task)))
  params = {name: jnp.where(jnp.abs(x) < jnp.median(jnp.abs(x)), 0, x) for name, x in params.items()}
  boxes = {name: box.replace(value=params[name]) for name, box in named.items()}
  with pytest.raises(UserError, match="50% of .* is zero, which an offset does not keep: use no --asymmetric"):
    Quantize("int4", 16, symmetric=False).apply(task, boxes)
  Quantize("int4", 16).apply(task, boxes)


def test_more_inputs_than_a_block():
  rng = np.random.default_rng(0)
  x = rng.standard_normal((300, 40)) @ rng.standard_normal((40, 128)) + 0.5 * rng.standard_normal((300, 128))
  weights, hessian = rng.standard_normal((128, 3)), x.T @ x
  arguments = (jnp.asarray(weights, jnp.float32), jnp.asarray(hessian, jnp.float32), 2)
  values, scale, offset = round_in_turn(*arguments, "int4", False, 0.01)
  dense = np.asarray(QTensor(values, scale, offset).dense(jnp.float32))
  expected = numpy_gptq(weights, hessian, 2, 7, False, 0.01)
  # A value in the middle of two may go to either in float32, and those after it then make up for something else.
  lost = lambda kernel: np.linalg.norm(x @ (kernel - weights))  # noqa: E731
  assert np.mean(np.abs(dense - expected) < 1e-3) > 0.9 and lost(dense) < 1.02 * lost(expected)


@pytest.mark.parametrize(
  "family", [*(pytest.param(name, marks=pytest.mark.slow) for name in ("GPT", "BERT")),
             *(pytest.param(name, marks=pytest.mark.long) for name in ("T5", "LSTM"))],
)  # fmt: skip
def test_every_family(family):
  """Kernels whose inputs are seen differ from those rounded to the nearest; the others do not, and all are leaves."""
  task = tiny_task(family)
  named = pytree.named_leaves(named_parameters(task, 4, 16), is_leaf=is_partitioned)
  params = pytree.named_leaves(init_params(task, fake_batch(task)))
  boxes = {name: box.replace(value=params[name]) for name, box in named.items()}
  nearest, gptq = Quantize("int4", 16).apply(task, boxes), GPTQ("int4", 16).apply(task, boxes, fake_batch(task))
  for name, leaf in nearest.items():
    same = all(jax.tree.leaves(jax.tree.map(np.array_equal, leaf, gptq[name])))
    seen = isinstance(leaf, QTensor) and name.startswith("model/") and name.endswith("kernel")
    assert same != (seen and not name.endswith(("hidden/kernel", "project/kernel"))), name
    assert jax.tree.structure(leaf) == jax.tree.structure(gptq[name])
    assert jax.tree.map(jnp.shape, leaf) == jax.tree.map(jnp.shape, gptq[name])
  with pytest.raises(UserError, match="needs calibration data"):
    GPTQ("int4", 16).apply(task, boxes)


def test_settings_are_checked():
  with pytest.raises(ValueError, match="the damping is above 0"):
    GPTQ("int4", damping=0.0)
