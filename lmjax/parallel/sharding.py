"""Shardings from logical axis names: parameters are created with names, which a Layout maps to mesh axes once.

Only `parallel/` knows mesh axes. Activations are sharded by `constrain`, which is the identity outside `use_layout`.
"""

import bisect
import contextlib
import contextvars
import dataclasses
import math
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
from flax import linen as nn
from flax import struct
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from lmjax.parallel.mesh import RULES, Rules
from lmjax.utils import pytree
from lmjax.utils.errors import UserError, did_you_mean

Tree = Any


class LogicallyPartitioned(struct.PyTreeNode, nn.meta.AxisMetadata):
  """A parameter with its logical axis names, from initialisation until `unbox`.

  `rows` is the size of axis 0 without padding if it is padded (as in a vocabulary table), otherwise None.
  """

  value: Any
  names: tuple[str | None, ...] = struct.field(pytree_node=False)
  rows: int | None = struct.field(pytree_node=False, default=None)

  def unbox(self) -> Any:
    return self.value

  def replace_boxed(self, val: Any) -> "LogicallyPartitioned":
    return self.replace(value=val)

  def add_axis(self, index: int, params: dict) -> "LogicallyPartitioned":
    return self.replace(names=(*self.names[:index], "layers", *self.names[index:]))

  def remove_axis(self, index: int, params: dict) -> "LogicallyPartitioned":
    return self.replace(names=(*self.names[:index], *self.names[index + 1 :]))

  def size(self) -> int:
    """Returns the number of values, padding not counted."""
    shape = self.value.shape
    return math.prod(shape if self.rows is None else (self.rows, *shape[1:]))


def is_partitioned(leaf: Any) -> bool:
  """Returns whether a leaf is a parameter with its logical axis names."""
  return isinstance(leaf, LogicallyPartitioned)


def count_parameters(boxed: Tree) -> int:
  """Returns the number of values in a tree; vocabulary padding is not counted in what is `LogicallyPartitioned`."""
  leaves = jax.tree.leaves(boxed, is_leaf=is_partitioned)
  return sum(leaf.size() if is_partitioned(leaf) else leaf.size for leaf in leaves)


@dataclasses.dataclass(frozen=True)
class Layout:
  """A mesh and the rules that map logical axes to its axes."""

  mesh: Mesh
  rules: Rules

  @classmethod
  def build(cls, mesh: Mesh, rules: str | list | tuple) -> "Layout":
    """Returns the layout of a rule set, by name or as `[[logical, [mesh axis, ...]], ...]`.

    Raises:
      UserError: the rule set or a mesh axis is unknown, or no rule uses a mesh axis of more than one device.
    """
    if isinstance(rules, str):
      if rules not in RULES:
        raise UserError(f"rules: unknown rule set {rules!r}{did_you_mean(rules, RULES)}")
      rules = RULES[rules]
    if not isinstance(rules, list | tuple) or not all(map(_is_rule, rules)):
      raise UserError(f"rules: a list of [logical axis, [mesh axis, ...]] or the name of a rule set, not {rules!r}")
    rules = tuple((logical, (axes,) if isinstance(axes, str) else tuple(axes)) for logical, axes in rules)
    for logical, axes in rules:
      for axis in axes:
        if axis not in mesh.axis_names:
          raise UserError(f"rules: {logical} -> {axis}: unknown mesh axis{did_you_mean(axis, mesh.axis_names)}")
    used = {axis for _, axes in rules for axis in axes}
    for axis, size in mesh.shape.items():
      if size > 1 and axis not in used:
        suitable = [name for name, rule_set in RULES.items() if any(axis in axes for _, axes in rule_set)]
        raise UserError(
          f"mesh: {axis}={size}, but no sharding rule uses mesh axis {axis!r}; rule sets that do: {', '.join(suitable)}"
        )
    return cls(mesh, rules)

  def spec(self, *logical: str | None, shape: tuple[int, ...] | None = None) -> PartitionSpec:
    """Returns the mesh axes of each dimension; with `shape`, a dimension that they do not divide evenly has none."""
    rules, used, entries = dict(self.rules), set(), []
    for dimension, axis in enumerate(logical):
      axes = tuple(a for a in rules.get(axis, ()) if a not in used and self.mesh.shape[a] > 1)
      if shape is not None and axes and shape[dimension] % math.prod(self.mesh.shape[a] for a in axes):
        axes = ()
      used.update(axes)
      entries.append(axes if len(axes) > 1 else axes[0] if axes else None)
    return PartitionSpec(*entries)

  def num_shards(self, logical: str, size: int | None = None) -> int:
    """Returns the number of shards of a logical axis; 1 if they would not divide `size` evenly."""
    axes = self.spec(logical, shape=None if size is None else (size,))[0] or ()
    return math.prod(self.mesh.shape[axis] for axis in ((axes,) if isinstance(axes, str) else axes))

  def sharding(self, *logical: str | None, shape: tuple[int, ...] | None = None) -> NamedSharding:
    """Returns the NamedSharding of an array with these logical axes; replicated if there are none."""
    return NamedSharding(self.mesh, self.spec(*logical, shape=shape))

  def abstract(self, boxed: Tree) -> Tree:
    """Returns shape, dtype and sharding of each parameter of a tree of `LogicallyPartitioned`."""

    def leaf(box: LogicallyPartitioned) -> jax.ShapeDtypeStruct:
      shape = box.value.shape
      return jax.ShapeDtypeStruct(shape, box.value.dtype, sharding=self.sharding(*box.names, shape=shape))

    return jax.tree.map(leaf, boxed, is_leaf=is_partitioned)

  def inherited(self, tree: Tree, *boxed: Tree) -> Tree:
    """Returns a sharding for each array of a tree made from named parameters: optimizer state, masks, factors."""
    named = [item for part in boxed for item in pytree.named_leaves(part, is_leaf=is_partitioned).items()]
    parents = {path: (leaf.value.shape, leaf.names) for path, leaf in named if is_partitioned(leaf)}
    names = pytree.inherit(tree, parents, None)
    return jax.tree.map(lambda leaf, axes: self.sharding(*axes, shape=leaf.shape), tree, names)

  def replicated(self, boxed: Tree) -> list[str]:
    """Returns a line for each dimension that a rule shards but that is replicated, as the mesh does not divide it."""
    lines = []
    for path, leaf in jax.tree_util.tree_leaves_with_path(boxed, is_leaf=is_partitioned):
      shape = leaf.value.shape
      wanted, actual = self.spec(*leaf.names), self.spec(*leaf.names, shape=shape)
      axes = [name for name, before, after in zip(leaf.names, wanted, actual, strict=True) if before and not after]
      lines += [
        f"{pytree.name(path)} {shape} is replicated along {axis!r}, which the mesh does not divide" for axis in axes
      ]
    return lines

  def rows(self, batch: int) -> list[int]:
    """Returns the rows of a global batch on the devices of this host; hosts that share one model replica share rows."""
    indices = self.sharding("batch", shape=(batch,)).addressable_devices_indices_map((batch,)).values()
    return sorted({row for index in indices if index for row in range(batch)[index[0]]})

  def shard_batch(self, spec: Tree, batch: Tree, rows: list[int]) -> Tree:
    """Returns the global batch as sharded arrays.

    Args:
      spec: shapes of the global batch.
      batch: the rows of this host, in the order of `rows`.
      rows: their indices in the global batch, sorted (see `Layout.rows`).
    """

    def shard(sharding: NamedSharding, shape: tuple[int, ...], local: np.ndarray) -> jax.Array:
      def read(index: tuple[slice, ...]) -> np.ndarray:
        wanted = range(shape[0])[index[0]]
        start = bisect.bisect_left(rows, wanted.start)
        return local[(slice(start, start + len(wanted)), *index[1:])]

      return jax.make_array_from_callback(shape, sharding, read)

    return {key: shard(sharding, spec[key].shape, batch[key]) for key, sharding in self.batch(spec).items()}

  def batch(self, batch: Tree) -> Tree:
    """Returns the shardings of a batch of arrays [batch, length, ...]."""
    return jax.tree.map(lambda a: self.sharding(*("batch", "length", *[None] * 8)[: a.ndim], shape=a.shape), batch)

  def abstract_batch(self, spec: Tree) -> Tree:
    """Returns shape, dtype and sharding of each array of a batch."""
    return jax.tree.map(lambda s, where: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=where), spec, self.batch(spec))


def _is_rule(rule: Any) -> bool:
  if not isinstance(rule, list | tuple) or len(rule) != 2 or not isinstance(rule[1], str | list | tuple):
    return False
  return isinstance(rule[0], str) and all(isinstance(axis, str) for axis in rule[1])


_current: contextvars.ContextVar[Layout | None] = contextvars.ContextVar("layout", default=None)


@contextlib.contextmanager
def use_layout(layout: Layout) -> Iterator[Layout]:
  """Makes this the layout of `constrain` and of the attention kernels, and its mesh the current mesh of jax."""
  token = _current.set(layout)
  try:
    with jax.set_mesh(layout.mesh):
      yield layout
  finally:
    _current.reset(token)


def current_layout() -> Layout | None:
  """Returns the layout of the enclosing `use_layout`, or None."""
  return _current.get()


def constrain(x: jax.Array, *logical: str | None) -> jax.Array:
  """Constrains the sharding of an activation by its logical axes; the identity outside `use_layout`."""
  layout = _current.get()
  if layout is None or layout.mesh.size == 1:
    return x
  return jax.lax.with_sharding_constraint(x, layout.sharding(*logical, shape=x.shape))
