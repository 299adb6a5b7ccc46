"""Quantization: within half a step of the weights, the same in lookup and scores, for every family."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util

from lmjax.compression.quantize import DTYPES, QTensor, Quantize, block_counts, quantize
from lmjax.decode.logits import Sampling
from lmjax.decode.sample import Sampler
from lmjax.layers import leaves
from lmjax.parallel.sharding import is_partitioned
from lmjax.state import named_parameters
from lmjax.storage.compressed import pack, unpack
from lmjax.tasks.base import weighted_sum
from lmjax.testing import fake_batch, init_params
from lmjax.utils import pytree
from lmjax.utils.errors import UserError
from tests.families import FAMILIES, UNSTACKED, tiny_task

MARKS = {"GPT": (), "LSTM": (), "T5": (pytest.mark.long,)}  # the others are slow
EACH = [pytest.param(family, marks=MARKS.get(family, (pytest.mark.slow,))) for family in FAMILIES]


def boxed(task):
  """Returns new parameters with their axis names, by path names."""
  names = pytree.named_leaves(named_parameters(task, 4, 16), is_leaf=is_partitioned)
  params = pytree.named_leaves(init_params(task, fake_batch(task)))
  return {name: box.replace(value=params[name]) for name, box in names.items()}


def tree_of(params):
  return {"model": {}, "heads": {}} | traverse_util.unflatten_dict(params, sep="/")


def numpy_dequantized(array, counts, dtype, symmetric):
  """Rounds block by block, in a loop over blocks, in float64."""
  array, top = np.asarray(array, np.float64), DTYPES[dtype]
  dense, steps = np.zeros_like(array), np.zeros_like(array)
  blocks = [n // c for n, c in zip(array.shape, counts, strict=True)]
  for index in np.ndindex(*counts):
    where = tuple(slice(i * b, (i + 1) * b) for i, b in zip(index, blocks, strict=True))
    x = array[where]
    if symmetric:
      step, offset, low = np.abs(x).max() / top, 0.0, -top
    else:
      step = (x.max() - x.min()) / (2 * top + 1)
      offset, low = x.min() + (top + 1) * step, -top - 1
    step = step or 1.0
    dense[where] = np.clip(np.round((x - offset) / step), low, top) * step + offset
    steps[where] = step
  return dense, steps


@pytest.mark.parametrize("dtype", ["int8", "int4"])
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("counts", [(1, 3), (6, 1), (2, 3), (3, 3), (1, 1), (6, 3)])
def test_integers_are_those_of_numpy_and_within_half_a_step(dtype, symmetric, counts):
  array = np.random.default_rng(0).standard_normal((6, 3)).astype(np.float32) * 3 + 1
  leaf = quantize(jnp.asarray(array), counts, dtype, symmetric)
  dense, (expected, steps) = np.asarray(leaf.dense(jnp.float32)), numpy_dequantized(array, counts, dtype, symmetric)
  assert leaf.values.dtype == dtype and leaf.scale.shape == counts and (leaf.offset is None) == symmetric
  assert np.all(np.abs(dense - array) <= steps / 2 * (1 + 1e-4) + 1e-6)
  np.testing.assert_allclose(dense, expected, atol=steps.max() * 1e-3)


@pytest.mark.parametrize("dtype", ["float8_e4m3fn", "float8_e5m2"])
def test_floats_are_within_half_of_their_last_bit(dtype):
  array = np.random.default_rng(0).standard_normal((64, 5)).astype(np.float32)
  leaf = quantize(jnp.asarray(array), (1, 5), dtype)
  error = np.abs(np.asarray(leaf.dense(jnp.float32)) - array)
  bits = {"float8_e4m3fn": 3, "float8_e5m2": 2}[dtype]
  assert np.all(error <= np.abs(array) * 2.0 ** -(bits + 1) + 2.0**-9 * np.asarray(leaf.scale) * (1 + 1e-4))
  assert error.max() > 0 and leaf.values.dtype == dtype


@pytest.mark.parametrize("dtype", DTYPES)
def test_zeros_stay_zero(dtype):
  array = jnp.asarray([[0.0, 1.0], [0.0, 0.0]])
  np.testing.assert_array_equal(quantize(array, (1, 2), dtype).dense(jnp.float32), array)


@pytest.mark.parametrize(
  "shape, inputs, group, counts",
  [
    ((12, 5), range(1), 0, (1, 5)),
    ((12, 5), range(1), 4, (3, 5)),
    ((12, 5), range(1), 8, (3, 5)),  # the greatest common divisor
    ((12, 5), range(1), 100, (3, 5)),
    ((3, 4, 5), range(2), 4, (3, 1, 5)),
    ((3, 4, 5), range(2), 12, (1, 1, 5)),
    ((4, 4, 5), range(2), 8, (2, 1, 5)),
    ((2, 3, 4, 5), range(1, 3), 2, (2, 3, 2, 5)),  # of stacked layers
  ],
)
def test_groups_run_along_the_inputs(shape, inputs, group, counts):
  assert block_counts(shape, inputs, group) == counts


def test_int4_is_packed_two_in_a_byte():
  values = np.arange(-8, 7).astype(np.int8).reshape(3, 5)
  packed = pack(values)
  assert packed.dtype == np.uint8 and packed.size == 8
  np.testing.assert_array_equal(unpack(packed, (3, 5)).astype(np.int8), values)


@pytest.mark.parametrize(
  "dtype, symmetric, counts",
  [("int8", True, (7, 1)), ("int4", True, (7, 2)), ("int8", False, (7, 4)), ("int8", True, (1, 8))],
)
def test_a_table_serves_lookup_and_scores(dtype, symmetric, counts):
  rng = np.random.default_rng(0)
  table = quantize(jnp.asarray(rng.standard_normal((7, 8)), jnp.float32), counts, dtype, symmetric)
  dense, x = np.asarray(table.dense(jnp.float32)), rng.standard_normal((2, 3, 8)).astype(np.float32)
  ids = jnp.asarray([[0, 6, 2], [3, 3, 9]])  # the last is clipped
  np.testing.assert_array_equal(leaves.take(table, ids, jnp.float32), dense[np.minimum(ids, 6)])
  np.testing.assert_allclose(leaves.scores(jnp.asarray(x), table), x @ dense.T, rtol=1e-5, atol=1e-5)


SETTINGS = [Quantize(), Quantize("int4", 8, False, table_group=8), Quantize("float8_e4m3fn", tables="")]


@pytest.mark.parametrize("family", EACH)
def test_every_family_computes_with_its_leaves_as_with_their_arrays(family):
  """Stacked or not, tied or not: forward, loss and gradient-free scores."""
  task = tiny_task(family)
  params, batch = boxed(task), fake_batch(task)

  @jax.jit
  def loss(tree):
    terms, _ = task.loss(tree, {}, task.initial_carry(4), batch)
    return task.forward(tree, batch).logits, weighted_sum(task, terms, task.counts(batch))

  plain = loss(tree_of({name: box.value for name, box in params.items()}))
  for settings in SETTINGS[: 2 if family in ("GPT", "LSTM") else 1]:
    quantized = settings.apply(task, params)
    kernels = {name for name in params if name.endswith("kernel")}
    changed = {name for name, leaf in quantized.items() if isinstance(leaf, QTensor)}
    assert kernels <= changed and any(name.endswith("table") for name in changed)
    tree = tree_of(quantized)
    logits, value = loss(tree)
    expected, expected_value = loss(leaves.dense_tree(tree))
    np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(value, expected_value, rtol=1e-5)
    assert 0 < np.abs(np.asarray(logits) - np.asarray(plain[0])).max() < 0.5


@pytest.mark.parametrize(
  "family, scan", [("GPT", True), ("Llama", False), pytest.param("T5", True, marks=pytest.mark.slow)]
)
def test_decoding_is_that_of_the_arrays(family, scan):
  task = tiny_task(family, **({} if family in UNSTACKED else {"scan": scan}))
  tree = tree_of(Quantize("int4", 8).apply(task, boxed(task)))
  sampler = Sampler(task.model, 24, Sampling(temperature=0.0))
  sources = [[5, 6, 7], [8]] if task.model.kind == "encoder_decoder" else None
  drawn = []
  for params in (tree, leaves.dense_tree(tree)):
    prepared = sampler.prepare(params["model"])
    drawn.append(np.concatenate(list(sampler.tokens(prepared, [[1, 2, 3], [4]], 6, [0, 0], 6, sources)), axis=1))
  np.testing.assert_array_equal(*drawn)


@pytest.mark.parametrize(
  "settings, message",
  [
    (dict(dtype="int3"), "the type is one of int8"),
    (dict(tables="int2"), "the type is one of int8"),
    (dict(group=-1), "a group has at least one value"),
    (dict(dtype="float8_e5m2", symmetric=False), "symmetric around zero"),
    (dict(targets="("), "not a regular expression"),
  ],
)
def test_settings_are_checked(settings, message):
  with pytest.raises(ValueError, match=message):
    Quantize(**settings)


def test_what_is_quantized_is_not_quantized_again():
  task = tiny_task("GPT")
  params = boxed(task)
  once = Quantize().apply(task, params)
  with pytest.raises(UserError, match="quantized already") as error:
    Quantize().apply(task, {name: params[name].replace(value=value) for name, value in once.items()})
  assert "\n" not in str(error.value)
  with pytest.raises(UserError, match=r"matches no kernel; those of this model: .*query/kernel"):
    Quantize(targets="nothing", tables="").apply(task, params)
