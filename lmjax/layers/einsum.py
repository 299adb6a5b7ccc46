"""The two layers that own weights, Einsum and Embed: axes are named here and special leaves read here, nowhere else.

The letters of an equation are those of `utils.shapes.LEGEND`, so a kernel's logical axes are read off its equation:
`Einsum("BLD,DHK->BLHK", {"D": 768, "H": 12, "K": 64})` has a kernel of axes (width, heads, head) and a bias (heads,
head).
"""

import math
import re
from functools import partial

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax import struct

from lmjax.layers.backend import barrier, einsum_f32
from lmjax.parallel.sharding import LogicallyPartitioned
from lmjax.utils import pytree
from lmjax.utils.shapes import LEGEND

VOCABULARY_MULTIPLE = 128  # tables are padded to it in memory, so that every mesh and every matrix unit divides them


def padded(vocabulary: int) -> int:
  """Returns the number of rows a vocabulary table has in memory."""
  return -(-vocabulary // VOCABULARY_MULTIPLE) * VOCABULARY_MULTIPLE


def named(initializer, axes: tuple[str | None, ...], rows: int | None = None):
  """Wraps an initializer so that its parameter is init_params with logical axis names."""
  return lambda *args: LogicallyPartitioned(initializer(*args), axes, rows)


def cast(params: pytree.Tree, dtype: jnp.dtype) -> pytree.Tree:
  """Returns the compute copy of float32 parameters: once, as a sharded tree, norms excepted.

  Cast before the layer scan so that an FSDP gather moves half the bytes.
  """
  if dtype == jnp.float32:
    return params

  def leaf(name, value):
    keep = value.dtype != jnp.float32 or re.search(r"norm", name)
    return value if keep else value.astype(dtype)

  return pytree.map_named(leaf, params)


@struct.dataclass
class Transposed:
  """A kernel stored as a matrix of outputs x inputs, as the products of single tokens read it fastest on a CPU."""

  values: jax.Array


def matvec_by_columns(x_TxI: jax.Array, values_OxI: jax.Array) -> jax.Array:
  """Returns x values^T, [T, O], as a product of the matrix with columns: of eight, it is read 1.6 times as fast so."""
  return barrier(einsum_f32("oi,it->ot", values_OxI, barrier(x_TxI.T))).T


def transpose_kernels(params: pytree.Tree) -> pytree.Tree:
  """Returns the parameters of one layer with every kernel Transposed; decoding reads them so, training does not."""

  def leaf(name, value):
    if not name.endswith("kernel"):
      return value
    inputs = 2 if name.endswith("out/kernel") else 1  # axes summed over: heads and head size, or one
    return Transposed(value.reshape(math.prod(value.shape[:inputs]), -1).T)

  return pytree.map_named(leaf, params)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def einsum_with_grad(equation: str, x: jax.Array, kernel: jax.Array) -> jax.Array:
  """`einsum_f32`, with a kernel gradient whose smaller factor stands first.

  XLA's CPU compiler transposes the first factor of that product, together with whatever made it: the derivative of a
  GELU, recomputed in transposed order, cost more than the product itself.
  """
  return einsum_f32(equation, x, kernel)


def _einsum_with_grad_forward(equation, x, kernel):
  return einsum_f32(equation, x, kernel), (x, kernel)


def _einsum_with_grad_backward(equation, saved, dy):
  x, kernel = saved
  inputs, outputs = equation.split("->")
  inputs, letters = inputs.split(",")
  dx = einsum_f32(f"{outputs},{letters}->{inputs}", dy, kernel)
  first, second = ((inputs, x), (outputs, dy)) if x.size <= dy.size else ((outputs, dy), (inputs, x))
  kept = "".join(a for a in first[0] + second[0] if a in letters)
  d_kernel = einsum_f32(f"{first[0]},{second[0]}->{kept}", first[1], second[1])
  return dx, jnp.einsum(f"{kept}->{letters}", d_kernel)


einsum_with_grad.defvjp(_einsum_with_grad_forward, _einsum_with_grad_backward)


class Einsum(nn.Module):
  """A linear map by an einsum equation `inputs,kernel->outputs`, plus a bias over the kernel's output axes.

  `scale` multiplies the default standard deviation 0.02 of the kernel (GPT-2 scales residual projections by
  1/sqrt(2 depth)). Computes in the dtype of its input.
  """

  equation: str
  sizes: dict[str, int]
  bias: bool = True
  scale: float = 1.0
  deviation: float = 0.02

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    letters, outputs = self.equation.split(",")[1].split("->")
    kernel = self.get_variable("params", "kernel")
    if isinstance(kernel, Transposed):
      y = matvec_by_columns(x.reshape(x.shape[0] * x.shape[1], -1), kernel.values.astype(x.dtype))
      y = y.reshape(*x.shape[:2], *(self.sizes[a] for a in letters if a in outputs))
    else:
      shape = tuple(self.sizes[letter] for letter in letters)
      init = nn.initializers.normal(self.deviation * self.scale)
      kernel = self.param("kernel", named(init, tuple(LEGEND[a] for a in letters)), shape, jnp.float32)
      y = einsum_with_grad(self.equation, x, kernel.astype(x.dtype))
    if self.bias:
      letters = [letter for letter in outputs if letter in letters]
      shape = tuple(self.sizes[letter] for letter in letters)
      axes = tuple(LEGEND[a] for a in letters)
      bias = self.param("bias", named(nn.initializers.zeros, axes), shape, jnp.float32)
      y += bias.astype(x.dtype)
    return y


class Embed(nn.Module):
  """A table of vectors, looked up by id; `attend` scores vectors against it.

  The rows are padded in memory to a multiple of 128; padding is not counted and its scores are masked.
  """

  rows: int
  width: int
  axis: str = "vocabulary"
  deviation: float = 0.02

  def setup(self):
    rows = padded(self.rows) if self.axis == "vocabulary" else self.rows
    init = nn.initializers.normal(self.deviation)
    self.table = self.param("table", named(init, (self.axis, "width"), self.rows), (rows, self.width), jnp.float32)

  def __call__(self, ids: jax.Array, dtype: jnp.dtype = jnp.float32) -> jax.Array:
    """Returns vectors [..., D] of ids [...], in `dtype`."""
    return jnp.take(self.table, ids, axis=0, mode="clip").astype(dtype)


def vocabulary_logits(x: jax.Array, table_VxD: jax.Array, vocabulary: int) -> jax.Array:
  """Returns float32 logits [..., V] of vectors [..., D] against a table whose padded rows are cut off."""
  logits = jnp.einsum("...d,vd->...v", x, table_VxD.astype(x.dtype), preferred_element_type=jnp.float32)
  return logits[..., :vocabulary]
