"""What kernels read: statistics of their inputs, collected and used in a single forward pass.

Each kernel is replaced by a leaf that sees the inputs of its product. Layers are computed one after the other, outside
of any compiled program, and a kernel is changed before its product is taken, so the next layer reads what the changed
one gives, and the inputs of one kernel at a time are in memory.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct, traverse_util

from lmjax.layers import leaves
from lmjax.layers.leaves import Leaf, Parameter
from lmjax.parallel.sharding import LogicallyPartitioned
from lmjax.tasks.base import Task
from lmjax.utils.pytree import Tree

# Returns (statistic) of inputs [tokens, inputs]; statistics of several calls are added.
Observe = Callable[[jax.Array], jax.Array]
# Returns a new kernel for (path name, kernel, its axis names, statistic); without the axis of layers.
Change = Callable[[str, jax.Array, tuple[str | None, ...], jax.Array], Parameter]


@dataclasses.dataclass(eq=False)
class _Site:
  """A kernel of one layer."""

  name: str
  axes: tuple[str | None, ...]
  observe: Observe
  change: Change
  last: list[Any]  # the array that was read last, its summed axes and its statistic, of all sites
  calls: int = 0  # in a forward pass
  counting: bool = True
  statistic: Any = None
  changed: Parameter | None = None

  def read(self, statistic: jax.Array, kernel: jax.Array) -> Parameter:
    """Returns the kernel to use, by the statistic of what it reads."""
    self.statistic = statistic if self.statistic is None else self.statistic + statistic
    if self.calls == 1:
      self.changed = self.change(self.name, kernel, self.axes, self.statistic)
      return self.changed
    return kernel  # is read again with other inputs: all of them count


class _Observed(Leaf, struct.PyTreeNode):
  """A kernel that shows a site what it reads."""

  values: jax.Array
  site: _Site = struct.field(pytree_node=False)

  def dense(self, dtype: jnp.dtype) -> jax.Array:
    return self.values.astype(dtype)

  def cast(self, dtype: jnp.dtype) -> "_Observed":
    return self.replace(values=self.values.astype(dtype))

  def einsum(self, equation: str, x: jax.Array) -> jax.Array:
    inputs, outputs = equation.split("->")
    inputs, letters = inputs.split(",")
    summed = "".join(letter for letter in letters if letter not in outputs)
    if self.site.counting:
      self.site.calls += 1
    elif summed and set(summed) <= set(inputs) and not isinstance(x, jax.core.Tracer):
      return leaves.einsum(equation, x, self.site.read(self._statistic(inputs, summed, x), self.values))
    return leaves.einsum(equation, x, self.values)

  def _statistic(self, inputs: str, summed: str, x: jax.Array) -> jax.Array:
    """Returns what the site observes of x; several kernels that read one array share it."""
    last = self.site.last
    if not last or last[0] is not x or last[1] != summed:
      others = "".join(letter for letter in inputs if letter not in summed)
      size = math.prod(x.shape[inputs.index(letter)] for letter in summed)
      x_TxI = jnp.einsum(f"{inputs}->{others}{summed}", x).reshape(-1, size)
      last[:] = [x, summed, self.site.observe(x_TxI)]
    return last[2]


def calibrate(
  task: Task, params: Mapping[str, LogicallyPartitioned], targets: set[str], batch: Mapping[str, jax.Array],
  observe: Observe, change: Change,
) -> tuple[dict[str, Parameter], tuple[str, ...]]:  # fmt: skip
  """Returns the changed kernels by path names, and the names of targets whose inputs were not seen.

  Those are heads on top of the model, and kernels that a layer reads whole, such as the recurrent ones of an LSTM.

  Args:
    task: its model computes in float32 and without rematerialisation.
    params: of the task, arrays.
    batch: what the model reads.
  """
  sites: dict[str, list[_Site]] = {}
  last: list[Any] = []

  def wrap(name: str, box: LogicallyPartitioned) -> Any:
    """Returns one parameter, or those of each layer."""
    stacked = box.names[0] == "layers"
    values = list(box.value) if stacked else [box.value]
    if name in targets:
      sites[name] = [_Site(name, box.names[int(stacked) :], observe, change, last) for _ in values]
      values = [_Observed(value, site) for value, site in zip(values, sites[name], strict=True)]
    return values if stacked else values[0]

  tree = _per_layer(traverse_util.unflatten_dict({n: wrap(n, b) for n, b in params.items()}, sep="/"))
  tree = {"model": {}, "heads": {}} | tree
  jax.eval_shape(lambda tree: task.hidden(tree, batch).tokens, tree)
  for site in (site for group in sites.values() for site in group):
    site.counting = False
  task.hidden(tree, batch)
  changed, unseen = {}, []
  for name, group in sites.items():
    if any(site.statistic is None for site in group):
      unseen.append(name)
      continue
    box, arrays = params[name], []
    for i, site in enumerate(group):
      kernel = box.value[i] if box.names[0] == "layers" else box.value
      done = site.changed if site.changed is not None else change(name, kernel, site.axes, site.statistic)
      arrays.append(done)
    changed[name] = jax.tree.map(lambda *layers: jnp.stack(layers), *arrays) if box.names[0] == "layers" else arrays[0]
  return changed, tuple(unseen)


def _per_layer(tree: Tree) -> Tree:
  """Returns a tree in which stacked layers, lists at the leaves, are a tuple of trees."""
  if not isinstance(tree, dict):
    return tree
  tree = {key: _per_layer(value) for key, value in tree.items()}
  if "layers" in tree:
    layers = traverse_util.flatten_dict(tree["layers"])
    depth = len(next(iter(layers.values())))
    tree["layers"] = tuple(
      traverse_util.unflatten_dict({path: values[i] for path, values in layers.items()}) for i in range(depth)
    )
  return tree
