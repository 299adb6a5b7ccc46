"""Quantized kernels and tables as decoding on a CPU reads them: the integers, not a widened copy of them."""

import jax
import jax.numpy as jnp

from lmjax.layers.kernels.int8_product import int8_product
from lmjax.layers.transposed import Transposed


class Int8Rows(Transposed):
  """A kernel as a matrix [outputs, inputs], or a table [rows, width], of int8 with scales for groups of each row.

  scale, offset: float32 [outputs, groups]; the inputs of a group lie next to each other. offset: None where values are
  symmetric around zero. factor: None, or what the weights of each input [1, inputs] were multiplied by before rounding.
  shape: of the kernel; of a table, None.
  """

  scale: jax.Array
  offset: jax.Array | None = None
  factor: jax.Array | None = None

  def dense(self, dtype: jnp.dtype) -> jax.Array:
    x = self._widened(jnp.arange(len(self.values)))
    return (x if self.shape is None else x.T.reshape(self.shape)).astype(dtype)

  def cast(self, dtype: jnp.dtype) -> "Int8Rows":
    return self  # its values have a type of their own, and the scales stay float32

  def product(self, x_TxI: jax.Array) -> jax.Array:
    x = x_TxI.astype(jnp.float32) if self.factor is None else x_TxI / self.factor
    y = int8_product(x, self.values, self.scale)
    if self.offset is not None:
      y += jnp.einsum("tgi,og->to", x.reshape(len(x), self.offset.shape[1], -1), self.offset)
    return y.astype(x_TxI.dtype)

  def take(self, ids: jax.Array, dtype: jnp.dtype) -> jax.Array:
    return self._widened(ids.reshape(-1)).reshape(*ids.shape, -1).astype(dtype)

  def scores(self, x: jax.Array) -> jax.Array:
    return self.product(x.reshape(-1, x.shape[-1]).astype(jnp.float32)).reshape(*x.shape[:-1], -1)

  def _widened(self, rows: jax.Array) -> jax.Array:
    """Returns some rows as float32 [N, inputs]."""
    values, scale, offset = (
      None if x is None else jnp.take(x, rows, axis=0, mode="clip") for x in (self.values, self.scale, self.offset)
    )
    x = values.reshape(*scale.shape, -1).astype(jnp.float32) * scale[..., None]
    x = (x if offset is None else x + offset[..., None]).reshape(values.shape)
    return x if self.factor is None else x / self.factor
