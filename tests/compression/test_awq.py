"""AWQ: the factors are those of plain numpy, and the inputs that matter keep the outputs closer than rounding."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lmjax.commands.options import parser_of
from lmjax.compression.awq import AWQ, _factor, _moments
from lmjax.compression.quantize import QTensor, Quantize, quantize
from lmjax.inference.methods import choose
from lmjax.layers import leaves
from lmjax.parallel.sharding import is_partitioned
from lmjax.state import named_parameters
from lmjax.testing import fake_batch, init_params
from lmjax.utils import pytree
from tests.families import tiny_task


def numpy_factor(x, weights, groups, top):
  """Returns s with the least error of the outputs, symmetric; float64."""
  means, best = np.abs(x).mean(0), np.inf
  for exponent in np.arange(20) / 20:
    s = means**exponent
    s = (s / np.sqrt(s.max() * s.min()))[:, None]
    blocks = (weights * s).reshape(groups, -1, weights.shape[1])
    scale = np.abs(blocks).max(1, keepdims=True) / top
    rounded = (np.clip(np.round(blocks / scale), -top, top) * scale).reshape(weights.shape) / s
    error = np.sum((x @ (rounded - weights)) ** 2)
    if error < best:
      best, factor = error, s[:, 0]
  return factor


def example(inputs=16, outputs=12):
  """Returns inputs of which two are much larger than the others, and weights."""
  rng = np.random.default_rng(0)
  x = rng.standard_normal((200, inputs)) * np.where(np.arange(inputs) % 8 == 3, 30.0, 1.0)
  return x, rng.standard_normal((inputs, outputs))


@pytest.mark.parametrize("groups", [1, 4])
def test_factors_are_those_of_numpy(groups):
  x, weights = example()
  statistic = _moments(jnp.asarray(x, jnp.float32))
  made = _factor(jnp.asarray(weights, jnp.float32), statistic[:-1], statistic[-1], groups, "int4", True)
  np.testing.assert_allclose(made, numpy_factor(x, weights, groups, 7), rtol=2e-3)


@pytest.mark.parametrize("gptq", [False, True])
@pytest.mark.parametrize("symmetric", [False, True])
def test_outputs_are_closer_than_by_rounding_to_the_nearest(symmetric, gptq):
  x, weights = example()
  method = AWQ("int4", symmetric=symmetric, gptq=gptq)
  kernel = jnp.asarray(weights, jnp.float32)
  leaf = method._change("kernel", kernel, ("width", "mlp"), method.observe(jnp.asarray(x, jnp.float32)))
  assert leaf.factor.shape == (16, 1) and (leaf.offset is None) == symmetric
  lost = lambda dense: np.linalg.norm(x @ (np.asarray(dense, np.float64) - weights))  # noqa: E731
  nearest = quantize(kernel, (1, 12), "int4", symmetric).dense(jnp.float32)
  assert lost(leaf.dense(jnp.float32)) < 0.5 * lost(nearest)
  y = leaves.einsum("BD,DF->BF", jnp.asarray(x, jnp.float32), leaf)
  np.testing.assert_allclose(y, x @ np.asarray(leaf.dense(jnp.float32), np.float64), rtol=1e-3, atol=1e-2)


def test_an_input_that_is_always_zero_has_a_factor():
  x, weights = example()
  x[:, 5] = 0.0
  method, kernel = AWQ("int4"), jnp.asarray(weights, jnp.float32)
  leaf = method._change("kernel", kernel, ("width", "mlp"), method.observe(jnp.asarray(x, jnp.float32)))
  assert np.all(np.isfinite(leaf.dense(jnp.float32))) and np.all(leaf.factor > 0)


@pytest.mark.parametrize(
  "family", [pytest.param(name, marks=pytest.mark.slow) for name in ("GPT", "BERT", "T5", "LSTM")]
)
def test_every_family(family):
  """Kernels whose inputs are seen have factors, one for each input of each layer; the others are rounded."""
  task = tiny_task(family)
  named = pytree.named_leaves(named_parameters(task, 4, 16), is_leaf=is_partitioned)
  params = pytree.named_leaves(init_params(task, fake_batch(task)))
  boxes = {name: box.replace(value=params[name]) for name, box in named.items()}
  nearest, awq = Quantize("int4", 16).apply(task, boxes), AWQ("int4", 16).apply(task, boxes, fake_batch(task))
  for name, leaf in nearest.items():
    if isinstance(leaf, QTensor):
      seen = name.startswith("model/") and name.endswith("kernel")
      assert (awq[name].factor is not None) == (seen and not name.endswith(("hidden/kernel", "project/kernel"))), name
      assert jax.tree.map(jnp.shape, leaf) == jax.tree.map(jnp.shape, awq[name].replace(factor=None))


def test_the_option_gives_both_methods():
  given = "--quantize int4 --group 16 --asymmetric --tables none --calibration x --awq --gptq"
  options = parser_of("compress").parse_args(["--workdir", "in", "--output", "out", *given.split()])
  assert choose(options)[1] == [AWQ("int4", 16, False, "", 64, gptq=True)]
