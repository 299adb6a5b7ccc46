"""Integers and products with them are those of qwix, where it works: a kernel by itself, without offsets."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lmjax.compression.quantize import quantize
from lmjax.layers import leaves

qwix = pytest.importorskip("qwix")
pytestmark = pytest.mark.torch


def steps(top: int) -> str:
  """Returns qwix's name for steps of the largest magnitude / top; its own divide it by half a step more."""
  return f"absmax,{(top + 0.5) / top}"


@pytest.mark.parametrize("dtype, top", [("int8", 127), ("int4", 7)])
@pytest.mark.parametrize("group", [64, 16])
def test_values_and_scales_of_a_kernel(dtype, top, group):
  kernel = jax.random.normal(jax.random.key(0), (64, 3, 16)).at[:, 1, 2].set(0.0)
  ours = quantize(kernel, (64 // group, 3, 16), dtype)
  theirs = qwix.quantize(
    kernel, jnp.dtype(dtype), channelwise_axes=(1, 2), tiled_axes={0: group}, calibration_method=steps(top)
  )
  values = np.asarray(ours.values, np.int32)
  np.testing.assert_array_equal(values, np.asarray(theirs.qvalue, np.int32))
  used = np.abs(values).reshape(-1, group, 3, 16).max(1) > 0  # the scale of zeros may be any
  np.testing.assert_allclose(ours.scale[used], theirs.scale[used], rtol=1e-6)


def test_products_of_int8_with_int8():
  x, kernel = (jax.random.normal(jax.random.key(i), shape) for i, shape in enumerate([(2, 5, 64), (64, 48)]))
  ours = leaves.einsum("BLD,DF->BLF", x, quantize(kernel, (1, 48), "int8").replace(activations=True))
  theirs = qwix.dot_general(
    qwix.quantize(x, jnp.int8, channelwise_axes=(0, 1), calibration_method=steps(127)),
    qwix.quantize(kernel, jnp.int8, channelwise_axes=(1,), calibration_method=steps(127)),
    (((2,), (0,)), ((), ())),
  )
  np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-5)


def test_rows_of_a_table():
  table, ids = jax.random.normal(jax.random.key(0), (50, 32)), jnp.array([3, 49, 3])
  ours = quantize(table, (50, 1), "int8").take(ids, jnp.float32)
  theirs = qwix.dequantize(qwix.quantize(table, jnp.int8, channelwise_axes=(0,), calibration_method=steps(127)))
  np.testing.assert_allclose(ours, theirs[ids], rtol=1e-6)
