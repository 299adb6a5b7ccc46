"""Decoding with integer weights: the same numbers as with widened ones, with and without a compiler."""

import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lmjax.compression.int8_rows import Int8Rows
from lmjax.compression.quantize import QTensor, Quantize
from lmjax.decode.sample import prepare
from lmjax.layers import leaves
from lmjax.layers.kernels import int8_product as products
from lmjax.utils import pytree
from tests.compression.test_quantize import boxed, tree_of
from tests.families import tiny_task

compiled = pytest.mark.skipif(not products.available(), reason="the machine has no C++ compiler")
WAYS = [pytest.param(True, marks=compiled), False]
SETTINGS = [
  dict(),
  dict(dtype="int8", group=8, table_group=4),
  dict(dtype="int4", group=8, symmetric=False),
]


@pytest.fixture(params=WAYS, ids=["compiled", "XLA"])
def way(request, monkeypatch):
  """Whether products are computed by the compiled program."""
  if not request.param:
    monkeypatch.setattr(products, "available", lambda: False)
  return request.param


@pytest.mark.parametrize("vectors", [1, 2, 3, 7, 8, 13, 32, 33])
@pytest.mark.parametrize("inputs,outputs,groups", [(70, 33, 1), (192, 5, 3), (9, 130, 3), (1, 1, 1)])
def test_products_are_those_of_numpy(way, vectors, inputs, outputs, groups):
  """Of sizes that no vector unit divides, and of numbers of rows that threads do not share evenly."""
  rng = np.random.default_rng(0)
  x, scale = rng.standard_normal((vectors, inputs)).astype(np.float32), rng.random((outputs, groups), np.float32)
  values = rng.integers(-128, 128, (outputs, inputs)).astype(np.int8)
  got = jax.jit(lambda *arrays: products.int8_product(*arrays))(x, values, scale)
  weights = values.reshape(outputs, groups, -1).astype(np.float64) * scale[..., None]
  size = np.abs(x) @ np.abs(weights.reshape(outputs, inputs)).T  # rounding errors are in proportion to it
  np.testing.assert_array_less(np.abs(got - x @ weights.reshape(outputs, inputs).T), 1e-6 * size + 1e-30)


@pytest.mark.parametrize("family", ["Llama", "T5"])
@pytest.mark.parametrize("settings", SETTINGS)
def test_decoding_reads_integers_and_is_the_same(way, family, settings):
  task = tiny_task(family)
  params = tree_of(Quantize(**settings).apply(task, boxed(task)))["model"]
  fast = prepare(task.model, params)
  leaf = lambda x: isinstance(x, Int8Rows)  # noqa: E731
  found = {n: x for n, x in pytree.named_leaves(fast, is_leaf=leaves.is_leaf).items() if leaf(x)}
  assert all(x.values.dtype == jnp.int8 for x in found.values())
  kernels = [name for name in found if name.endswith("kernel")]
  layers = task.model.config.depth if family == "Llama" else task.model.config.decoder_depth or task.model.config.depth
  assert len(kernels) == layers * {"Llama": 7, "T5": 10}[family] and any(name.endswith("table") for name in found)
  for name, values in pytree.named_leaves(task.model.decode_layout(params), is_leaf=leaves.is_leaf).items():
    if name in found:
      np.testing.assert_allclose(found[name].dense(jnp.float32), leaves.dense(values), rtol=1e-6, err_msg=name)
  ids = jnp.asarray([[3, 4, 5, 6], [7, 8, 9, 2]])
  batch = {"inputs": ids, "segments": jnp.ones_like(ids)}
  if family == "T5":
    batch |= {"decoder_inputs": ids[:, :1], "decoder_segments": jnp.ones_like(ids[:, :1])}

  def run(params, batch):
    apply = lambda *args, method: task.model.apply({"params": params}, *args, method=method)  # noqa: E731
    _, cache = apply(batch, 8, method="prefill")
    hidden, _ = apply(cache, batch["inputs"][:, :1], jnp.ones((2, 1), bool), method="extend")
    return apply(hidden[:, -1], method="logits")

  lowered = jax.jit(run).lower(fast, batch)
  assert (products.NAME in lowered.as_text()) == way
  np.testing.assert_allclose(jax.jit(run)(fast, batch), jax.jit(run)(params, batch), rtol=1e-4, atol=1e-5)


def test_a_factor_of_the_inputs_and_types_of_the_computation():
  """As AWQ leaves them: weights were multiplied by it, so vectors are divided."""
  rng = np.random.default_rng(0)
  array = lambda *shape: jnp.asarray(rng.random(shape), jnp.float32)  # noqa: E731
  values = jnp.asarray(rng.integers(-7, 8, (2, 3, 5)), jnp.int8)
  leaf = QTensor(values, array(2, 1, 5), array(2, 1, 5), array(2, 3, 1) + 1)
  fast = leaf.for_decoding("stack/layers/0/attention/out/kernel")
  assert isinstance(fast, Int8Rows) and fast.factor.shape == (1, 6)
  np.testing.assert_allclose(fast.dense(jnp.float32), leaf.dense(jnp.float32), rtol=1e-6)
  x = array(4, 2, 3)
  for dtype, tolerance in ((jnp.float32, 1e-5), (jnp.bfloat16, 2e-2)):
    got = leaves.einsum("BHK,HKD->BD", x.astype(dtype), fast.cast(dtype))
    assert got.dtype == dtype
    np.testing.assert_allclose(
      got.astype(jnp.float32), jnp.einsum("bhk,hkd->bd", x, leaf.dense(jnp.float32)), tolerance
    )


@pytest.mark.parametrize(
  "name, leaf",
  [
    ("encoder/layers/mlp/in/kernel", QTensor(jnp.ones((2, 3, 4), jnp.int8), jnp.ones((2, 1, 4)))),  # stacked
    ("stack/layers/0/mlp/in/kernel", QTensor(jnp.ones((3, 4), jnp.float8_e4m3fn), jnp.ones((1, 4)))),
    ("stack/layers/0/out/kernel", QTensor(jnp.ones((2, 4, 3), jnp.int8), jnp.ones((1, 2, 3)))),  # not side by side
  ],
)
def test_other_leaves_stay_as_they_are(name, leaf):
  assert leaf.for_decoding(name) is leaf


@compiled
def test_the_program_is_compiled_once_and_kept(tmp_path, monkeypatch):
  """A cache that cannot be written or holds garbage costs time, and no compiler costs speed."""
  monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
  commands, run = [], products.subprocess.run
  monkeypatch.setattr(
    products.subprocess, "run", lambda command, **rest: commands.append(command) or run(command, **rest)
  )
  known = []  # a name is given to one program only
  monkeypatch.setattr(products.jax.ffi, "register_ffi_target", lambda name, *_, **__: known.append(name))
  fresh = products.available.__wrapped__
  assert fresh() and fresh() and len(commands) == 1
  (library,) = (tmp_path / "lmjax" / "kernels").iterdir()
  content = library.read_bytes()
  library.unlink()
  library.write_bytes(content[:-1000])
  assert fresh() and len(commands) == 2 and library.read_bytes() == content, "a file cut short is not loaded"
  monkeypatch.setenv("XDG_CACHE_HOME", os.devnull)
  assert fresh() and len(commands) == 3
  monkeypatch.setenv("CXX", "no-such-compiler")
  assert not fresh() and len(commands) == 3
  monkeypatch.setenv("CXX", "false")
  assert not fresh(), "a compiler that fails"
