"""Parameters: how they are created with logical axis names, and the only code that reads a kernel or a table.

A leaf of the parameter tree is an array, or a `Leaf`: a type of several arrays that represents one, such as a quantized
kernel or a kernel plus low-rank factors. Layers read both through `einsum`, `take`, `scores` and `dense`.
"""

import re
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from lmjax.layers.backend import einsum_with_grad, take_rows
from lmjax.parallel.sharding import LogicallyPartitioned
from lmjax.utils import pytree
from lmjax.utils.pytree import Tree


class Leaf:
  """Base of leaf types, each a `flax.struct.dataclass`; `dense` and `cast` are what a new type must define.

  Stacked layers stack every component along a leading axis, and a scan over layers gives each its own slice.
  """

  def dense(self, dtype: jnp.dtype) -> jax.Array:
    """Returns the array that this leaf represents."""
    raise NotImplementedError

  def cast(self, dtype: jnp.dtype) -> "Leaf":
    """Returns the leaf in the compute dtype; scales stay float32."""
    raise NotImplementedError

  def einsum(self, equation: str, x: jax.Array) -> jax.Array:
    """Returns the product of x and this kernel, in the dtype of x."""
    return einsum_with_grad(equation, x, self.dense(x.dtype))

  def take(self, ids: jax.Array, dtype: jnp.dtype) -> jax.Array:
    """Returns rows [..., D] of this table by their ids [...]."""
    return take_rows(self.dense(dtype), ids)

  def scores(self, x: jax.Array) -> jax.Array:
    """Returns float32 scores [..., V] of vectors [..., D] against this table."""
    return scores(x, self.dense(x.dtype))

  def in_training(self, make_rng: Callable[[], jax.Array]) -> "Leaf":
    """Returns the leaf as a model in training reads it; make_rng: gives a key for its dropout."""
    return self

  def for_decoding(self, name: str) -> "Leaf":
    """Returns the leaf as decoding reads it for every token; name: its path in the tree."""
    return self

  @classmethod
  def axes(cls, component: str, names: tuple[str | None, ...]) -> tuple[str | None, ...]:
    """Returns the logical axes of a component by those of the parameter that the leaf replaces."""
    return names


Parameter = jax.Array | Leaf


def is_leaf(value: Any) -> bool:
  """Returns whether a value is a `Leaf`, not an array."""
  return isinstance(value, Leaf)


def param(
  module: nn.Module, name: str, init: Callable[..., jax.Array], names: tuple[str | None, ...], shape: tuple[int, ...],
  rows: int | None = None,
) -> Parameter:  # fmt: skip
  """Returns a parameter of a module: the one it was given, array or Leaf, else a new one with logical axis names.

  Args:
    init: an initializer (rng, shape, dtype).
    rows: the true size of axis 0 where the array is padded, as a vocabulary table is.

  Raises:
    ValueError: the array given has another shape.
  """

  def boxed(*args: Any) -> Any:  # `module.param` unboxes it
    return LogicallyPartitioned(init(*args), names, rows)

  if not module.has_variable("params", name):
    return module.param(name, boxed, shape, jnp.float32)
  value = nn.unbox(module.get_variable("params", name))
  if isinstance(value, Leaf) and module.has_rng("dropout"):
    value = value.in_training(lambda: module.make_rng("dropout"))
  if not is_leaf(value) and value.shape != shape:
    raise ValueError(f"parameter {'/'.join((*module.path, name))} has shape {value.shape}, the model wants {shape}")
  return value


def einsum(equation: str, x: jax.Array, kernel: Parameter) -> jax.Array:
  """Returns the einsum of x and a kernel, in the dtype of x."""
  return kernel.einsum(equation, x) if is_leaf(kernel) else einsum_with_grad(equation, x, kernel.astype(x.dtype))


def take(table: Parameter, ids: jax.Array, dtype: jnp.dtype) -> jax.Array:
  """Returns rows [..., D] of a table by their ids [...]."""
  return table.take(ids, dtype) if is_leaf(table) else take_rows(table, ids).astype(dtype)


def scores(x: jax.Array, table: Parameter) -> jax.Array:
  """Returns float32 scores [..., V] of vectors [..., D] against a table [V, D]."""
  if is_leaf(table):
    return table.scores(x)
  return jnp.einsum("...d,vd->...v", x, table.astype(x.dtype), preferred_element_type=jnp.float32)


def dense(value: Parameter, dtype: jnp.dtype | None = None) -> jax.Array:
  """Returns a parameter as one array, in its own dtype (float32 for a Leaf) or another."""
  if isinstance(value, Leaf):
    return value.dense(dtype or jnp.float32)
  return value if dtype is None else value.astype(dtype)


def dense_tree(params: Tree) -> Tree:
  """Returns a tree with every Leaf as one float32 array."""
  return jax.tree.map(dense, params, is_leaf=is_leaf)


def cast(params: Tree, dtype: jnp.dtype) -> Tree:
  """Returns the compute copy of float32 parameters, norms excepted.

  It is made once, as a sharded tree, before the scan over layers, so that an FSDP gather moves half the bytes.
  """
  if dtype == jnp.float32:
    return params

  def leaf(name, value):
    if is_leaf(value):
      return value.cast(dtype)
    return value if value.dtype != jnp.float32 or re.search(r"norm", name) else value.astype(dtype)

  return pytree.map_named(leaf, params, is_leaf=is_leaf)


def partition(leaf: Leaf, parameter: LogicallyPartitioned) -> Leaf:
  """Returns a Leaf whose arrays carry logical axes: those its type's `axes` gives for the parameter it replaces.

  An axis whose size is not the parameter's is replicated.
  """

  def component(name, value):
    names = type(leaf).axes(name, parameter.names)
    sizes = dict(zip(parameter.names, parameter.value.shape, strict=True))
    names = tuple(axis if sizes.get(axis) == size else None for axis, size in zip(names, value.shape, strict=True))
    return LogicallyPartitioned(value, names)

  return pytree.map_named(component, leaf)
