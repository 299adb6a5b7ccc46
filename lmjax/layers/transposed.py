"""Kernels as decoding on a CPU reads them."""

import math

import jax
import jax.numpy as jnp
from flax import struct

from lmjax.layers import leaves
from lmjax.layers.backend import barrier, einsum_f32, transposes_kernels
from lmjax.utils import pytree
from lmjax.utils.pytree import Tree


class Transposed(leaves.Leaf, struct.PyTreeNode):
  """A kernel stored as a matrix [outputs, inputs], which products of single tokens read fastest on a CPU."""

  values: jax.Array
  shape: tuple[int, ...] = struct.field(pytree_node=False)  # of the kernel

  def dense(self, dtype: jnp.dtype) -> jax.Array:
    return self.values.T.reshape(self.shape).astype(dtype)

  def cast(self, dtype: jnp.dtype) -> "Transposed":
    return self.replace(values=self.values.astype(dtype))

  def einsum(self, equation: str, x: jax.Array) -> jax.Array:
    letters, outputs = equation.split(",")[1].split("->")
    tokens = x.shape[: x.ndim - sum(letter not in outputs for letter in letters)]
    y = matvec_by_columns(x.reshape(math.prod(tokens), -1), self.values.astype(x.dtype))
    return y.reshape(*tokens, *(n for letter, n in zip(letters, self.shape, strict=True) if letter in outputs))


def matvec_by_columns(x_TxI: jax.Array, values_OxI: jax.Array) -> jax.Array:
  """Returns x values^T [T, O] as a product with columns: a matrix is read 1.6 times as fast for eight tokens."""
  return barrier(einsum_f32("oi,it->ot", values_OxI, barrier(x_TxI.T))).T


def transpose(params: Tree) -> Tree:
  """Returns the parameters of one layer as products of single tokens read them fastest on the platform."""

  def leaf(name, value):
    if leaves.is_leaf(value) or not name.endswith("kernel") or (value.ndim == 3 and name.startswith("mlp/")):
      return value  # the kernels of experts are not read by products of single tokens
    inputs = 2 if name.endswith("out/kernel") else 1  # axes summed over: heads and head size, or one
    return Transposed(value.reshape(math.prod(value.shape[:inputs]), -1).T, value.shape)

  return pytree.map_named(leaf, params, is_leaf=leaves.is_leaf) if transposes_kernels() else params
