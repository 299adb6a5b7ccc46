"""int8 times int8: what kernels read is rounded, too, as plain numpy does it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lmjax import storage
from lmjax.__main__ import main
from lmjax.commands.options import parser_of
from lmjax.compression.quantize import QTensor, Quantize, quantize
from lmjax.compression.quantize_aware import QuantizeAware
from lmjax.compression.smooth_quant import SmoothQuant
from lmjax.data.tokenizers.base import Bytes
from lmjax.inference.methods import choose
from lmjax.layers import leaves
from lmjax.storage import huggingface
from lmjax.testing import init_params, tiny_decoder
from lmjax.utils import pytree
from tests.compression.test_awq import example
from tests.compression.test_quantize import boxed, tree_of
from tests.families import tiny_task


def rounded(x, axis):
  """Returns x to the nearest of 255 steps along an axis, float64."""
  step = np.abs(x).max(axis=axis, keepdims=True) / 127
  return np.round(x / np.where(step > 0, step, 1)) * step


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("equation, shape", [("BLD,DHK->BLHK", (6, 2, 3)), ("BLHK,HKD->BLD", (2, 3, 5))])
def test_products_are_those_of_numpy(equation, shape, dtype):
  rng = np.random.default_rng(0)
  inputs = shape[:1] if equation.startswith("BLD") else shape[:2]
  x = jnp.asarray(rng.standard_normal((2, 4, *inputs)), dtype).at[1, 2].set(0.0)
  kernel, factor = rng.standard_normal(shape).astype(np.float32), rng.random(inputs).astype(np.float32) + 0.5
  ones = (1,) * (len(shape) - len(inputs))
  leaf = quantize(jnp.asarray(kernel), (1,) * len(inputs) + shape[len(inputs) :], "int8")
  leaf = leaf.replace(activations=True, factor=jnp.asarray(factor.reshape(inputs + ones)))
  got = jax.jit(lambda x, leaf: leaves.einsum(equation, x, leaf))(x, leaf)
  assert got.dtype == dtype
  scaled = np.asarray(x, np.float64).reshape(8, -1) / factor.reshape(-1)
  wanted = rounded(scaled, 1) @ np.asarray(leaf.replace(factor=None).dense(jnp.float32)).reshape(scaled.shape[1], -1)
  tolerance = {"float32": 1e-5, "bfloat16": 1e-2}[dtype]
  np.testing.assert_allclose(np.asarray(got, np.float64).reshape(8, -1), wanted, tolerance, tolerance)
  text = str(jax.make_jaxpr(lambda x: leaves.einsum(equation, x, leaf))(x))
  assert "preferred_element_type=int32" in text, "a product of int8 with int8"


def test_outliers_are_moved_into_the_weights():
  """The factors are the paper's, and the outputs are closer than without them."""
  x, weights = example(32)
  x[:, 7] = 0.0
  kernel, inputs = jnp.asarray(weights, jnp.float32), jnp.asarray(x, jnp.float32)
  method = SmoothQuant()
  smooth = method._change("kernel", kernel, ("width", "mlp"), method.observe(inputs))
  factor = np.sqrt(np.abs(x).max(0) / np.abs(weights).max(1))
  factor[7] = 1.0
  np.testing.assert_allclose(smooth.factor[:, 0], factor, rtol=1e-5)
  plain = quantize(kernel, (1, 12), "int8").replace(activations=True)
  lost = [np.linalg.norm(leaves.einsum("BD,DF->BF", inputs, leaf) - x @ weights) for leaf in (smooth, plain)]
  assert smooth.activations and lost[0] < 0.6 * lost[1] and lost[1] < 0.02 * np.linalg.norm(x @ weights)


@pytest.mark.parametrize("family", ["Llama", pytest.param("BERT", marks=pytest.mark.slow)])
def test_only_kernels_round_what_they_read(family):
  task = tiny_task(family)
  made = Quantize(activations=True).apply(task, boxed(task))
  kinds = {name: leaf.activations for name, leaf in made.items() if isinstance(leaf, QTensor)}
  assert all(on == name.endswith("kernel") for name, on in kinds.items()) and len(set(kinds.values())) == 2
  batch = {"inputs": jnp.arange(12).reshape(2, 6), "segments": jnp.ones((2, 6), jnp.int32)}
  near = [task.hidden(tree, batch).tokens for tree in (tree_of(made), leaves.dense_tree(tree_of(made)))]
  error = float(jnp.linalg.norm(near[0] - near[1]) / jnp.linalg.norm(near[1]))
  assert 0 < error < 0.05


def test_a_folder_keeps_it(tmp_path):
  model = tiny_decoder(vocabulary=257)
  params = init_params(model, {"inputs": jnp.zeros((1, 4), jnp.int32)})["params"]
  huggingface.save(tmp_path / "model", model, {"model": params, "heads": {}}, Bytes())
  (tmp_path / "text.txt").write_text("the quick brown fox\n" * 30)
  given = ["--workdir", str(tmp_path / "model"), "--measure", "", "--quantize", "int8"]
  ways = {
    "plain": ["--activations"],
    "smooth": ["--smooth", "--tokens", "256", "--calibration", str(tmp_path / "text.txt")],
    "weights": [],
  }
  for name, way in ways.items():
    assert main(["compress", *given, *way, "--output", str(tmp_path / name)]) == 0
    named = pytree.named_leaves(storage.open(tmp_path / name).load().params, is_leaf=leaves.is_leaf)
    kernels = [leaf for path, leaf in named.items() if path.endswith("kernel")]
    assert all(leaf.activations == (name != "weights") for leaf in kernels)
    assert all((leaf.factor is not None) == (name == "smooth") for leaf in kernels)


@pytest.mark.parametrize(
  "changes, message",
  [(dict(group=8), "one symmetric scale"), (dict(dtype="int4"), "int8 kernels"), (dict(symmetric=False), "symmetric")],
)
def test_what_has_no_scale_for_each_output_is_refused(changes, message):
  with pytest.raises(ValueError, match=message):
    Quantize(activations=True, **changes)


def test_other_wrong_settings_are_refused():
  with pytest.raises(ValueError, match="not rounded in training"):
    QuantizeAware(activations=True)
  with pytest.raises(ValueError, match="alpha is from 0 to 1, not 2"):
    SmoothQuant(alpha=2)
  given = "--workdir in --output out --quantize int8 --smooth --calibration x"
  options = parser_of("compress").parse_args(given.split())
  assert choose(options)[1] == [SmoothQuant()]
