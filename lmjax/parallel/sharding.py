"""Logical names to shardings: parameters are init_params with names, a Layout resolves them once.

Nothing outside `parallel/` knows a mesh axis. `constrain` is how activations ask for a layout, and it does nothing
outside `use_layout`.
"""

import bisect
import contextlib
import contextvars
import dataclasses
import math
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


@struct.dataclass
class LogicallyPartitioned(nn.meta.AxisMetadata):
  """A parameter with its logical axis names, as a module creates it and before `nn.unbox`.

  `rows` is the true size of axis 0 where the array is padded (a vocabulary table), else None.
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
    """Returns the number of true (unpadded) values."""
    shape = self.value.shape
    return math.prod(shape if self.rows is None else (self.rows, *shape[1:]))


def is_partitioned(leaf: Any) -> bool:
  """Returns whether a leaf is a parameter with its logical axis names."""
  return isinstance(leaf, LogicallyPartitioned)


def stack_names(boxed: Tree) -> Tree:
  """Adds the name `layers` in front of every parameter, after a vmapped initialisation."""
  return jax.tree.map(lambda leaf: leaf.add_axis(0, {}), boxed, is_leaf=is_partitioned)


def count_parameters(boxed: Tree) -> int:
  """Returns the number of trained values in a named (abstract) tree, vocabulary padding not counted."""
  return sum(leaf.size() for leaf in jax.tree.leaves(boxed, is_leaf=is_partitioned))


@dataclasses.dataclass(frozen=True)
class Layout:
  """A mesh and the rules that place logical axes on it."""

  mesh: Mesh
  rules: Rules

  @classmethod
  def build(cls, mesh: Mesh, rules: str | list | tuple) -> "Layout":
    """Returns the layout for a rule set by name, or given as `[[logical, [mesh axis, ...]], ...]`."""
    if isinstance(rules, str):
      if rules not in RULES:
        raise UserError(f"rules: no rule set {rules!r}{did_you_mean(rules, RULES)}")
      rules = RULES[rules]
    rules = tuple((logical, (axes,) if isinstance(axes, str) else tuple(axes)) for logical, axes in rules)
    for logical, axes in rules:
      for axis in axes:
        if axis not in mesh.axis_names:
          raise UserError(f"rules: {logical} -> {axis}: no such mesh axis{did_you_mean(axis, mesh.axis_names)}")
    used = {axis for _, axes in rules for axis in axes}
    for axis, size in mesh.shape.items():
      if size > 1 and axis not in used:
        others = [name for name, known in RULES.items() if any(axis in axes for _, axes in known)]
        raise UserError(
          f"mesh: {axis}={size}, and no rule gives that axis anything to carry; rule sets that do: {', '.join(others)}"
        )
    return cls(mesh, rules)

  def spec(self, *logical: str | None, shape: tuple[int, ...] | None = None) -> PartitionSpec:
    """Returns where each dimension goes; given its shape, an axis that does not divide is replicated."""
    wanted, taken, entries = dict(self.rules), set(), []
    for dimension, axis in enumerate(logical):
      axes = tuple(a for a in wanted.get(axis, ()) if a not in taken and self.mesh.shape[a] > 1)
      if shape is not None and axes and shape[dimension] % math.prod(self.mesh.shape[a] for a in axes):
        axes = ()
      taken.update(axes)
      entries.append(axes if len(axes) > 1 else axes[0] if axes else None)
    return PartitionSpec(*entries)

  def num_shards(self, logical: str, size: int | None = None) -> int:
    """Returns how many parts a logical axis is split into; one where `size` does not divide."""
    axes = self.spec(logical, shape=None if size is None else (size,))[0] or ()
    return math.prod(self.mesh.shape[axis] for axis in ((axes,) if isinstance(axes, str) else axes))

  def sharding(self, *logical: str | None, shape: tuple[int, ...] | None = None) -> NamedSharding:
    """Returns the NamedSharding for the logical axes; with no axes, replication."""
    return NamedSharding(self.mesh, self.spec(*logical, shape=shape))

  def shardings(self, boxed: Tree) -> Tree:
    """Returns a sharding for each parameter of a named abstract tree."""
    return jax.tree.map(lambda leaf: self.sharding(*leaf.names, shape=leaf.value.shape), boxed, is_leaf=is_partitioned)

  def inherited(self, tree: Tree, *boxed: Tree) -> Tree:
    """Returns a sharding for each array of a tree made from named parameters: optimizer state, masks, factors."""
    named = [item for part in boxed for item in pytree.named_leaves(part, is_leaf=is_partitioned).items()]
    parents = {path: (leaf.value.shape, leaf.names) for path, leaf in named if is_partitioned(leaf)}
    names = pytree.inherit(tree, parents, None)
    return jax.tree.map(lambda leaf, axes: self.sharding(*axes, shape=leaf.shape), tree, names)

  def replicated(self, boxed: Tree) -> list[str]:
    """Returns a line for each parameter that a rule wanted to split and whose size does not divide."""
    found = []
    for path, leaf in jax.tree_util.tree_leaves_with_path(boxed, is_leaf=is_partitioned):
      if self.spec(*leaf.names) != self.spec(*leaf.names, shape=leaf.value.shape):
        found.append(f"{pytree.name(path)} {leaf.value.shape} is replicated: {leaf.names} does not divide")
    return found

  def rows(self, batch: int) -> list[int]:
    """Returns which rows of a global batch this host's devices hold; hosts that share a model hold the same."""
    held = self.sharding("batch", shape=(batch,)).addressable_devices_indices_map((batch,)).values()
    return sorted({row for (index,) in held for row in range(batch)[index]})

  def shard_batch(self, spec: Tree, batch: Tree, rows: list[int]) -> Tree:
    """Returns a global batch on the devices, of which this host has brought its `rows`, whole ones."""

    def leaf(wanted: jax.sharding.NamedSharding, shape: jax.ShapeDtypeStruct, own: np.ndarray) -> jax.Array:
      def part(index: tuple[slice, ...]) -> np.ndarray:
        held = range(shape.shape[0])[index[0]]
        start = bisect.bisect_left(rows, held.start)
        return own[(slice(start, start + len(held)), *index[1:])]

      return jax.make_array_from_callback(shape.shape, wanted, part)

    return {key: leaf(wanted, spec[key], batch[key]) for key, wanted in self.batch(spec).items()}

  def batch(self, batch: Tree) -> Tree:
    """Returns the shardings of a batch: rows over `batch`, columns over `length`."""
    names = ("batch", "length")
    return jax.tree.map(
      lambda leaf: self.sharding(*names[: leaf.ndim], *[None] * (leaf.ndim - 2), shape=leaf.shape), batch
    )


_current: contextvars.ContextVar[Layout | None] = contextvars.ContextVar("layout", default=None)


@contextlib.contextmanager
def use_layout(layout: Layout):
  """Makes the layout the one that `constrain` and the kernels see, and its mesh jax's own."""
  token = _current.set(layout)
  try:
    with jax.set_mesh(layout.mesh):
      yield layout
  finally:
    _current.reset(token)


def current_layout() -> Layout | None:
  """Returns the layout in use, or None on a bare single device."""
  return _current.get()


def constrain(x: jax.Array, *logical: str | None) -> jax.Array:
  """Asks for the layout of an activation by its logical axes; the identity where no layout is in use."""
  layout = _current.get()
  if layout is None or layout.mesh.size == 1:
    return x
  return jax.lax.with_sharding_constraint(x, layout.sharding(*logical, shape=x.shape))
