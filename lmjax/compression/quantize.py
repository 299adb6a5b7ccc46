"""Quantization: kernels and tables as small integers or 8-bit floats, with a scale for each channel, row or group."""

import dataclasses
import functools
import math
import re
from collections.abc import Mapping

import jax
import jax.numpy as jnp
from flax import struct

from lmjax.compression.int8_rows import Int8Rows
from lmjax.compression.lora import first_output, stacked_axes
from lmjax.compression.method import check_pattern
from lmjax.layers import leaves
from lmjax.layers.backend import platform
from lmjax.layers.leaves import Leaf, Parameter
from lmjax.layers.transposed import as_matrix
from lmjax.parallel.sharding import Layout, LogicallyPartitioned, current_layout
from lmjax.tasks.base import Task
from lmjax.utils.errors import UserError, one_line

# The types of values, and the largest magnitude that each has on both sides of zero.
DTYPES = {"int8": 127, "int4": 7, "float8_e4m3fn": 448, "float8_e5m2": 57344}


class QTensor(Leaf, struct.PyTreeNode):
  """A kernel or table (values * scale + offset) / factor.

  values: int8, int4 or float8, in the shape of the parameter. scale, offset: float32, of the same rank; a dimension of
  size c has one number for each of c equal blocks of the parameter's dimension. 1 is a single block, and a dimension of
  the parameter's own size has a number for every index. offset: None where the values are symmetric around zero.
  factor: None, or for each input of a kernel what its weights were multiplied by before they were rounded; 1 in the
  dimensions of the outputs. activations: what an int8 kernel reads is rounded to int8, too: each vector symmetrically,
  by its own largest magnitude; such products have no gradient. A kernel then has one scale for each output.
  """

  values: jax.Array
  scale: jax.Array
  offset: jax.Array | None = None
  factor: jax.Array | None = None
  activations: bool = struct.field(pytree_node=False, default=False)

  def dense(self, dtype: jnp.dtype) -> jax.Array:
    values, scale, offset = self.values.astype(jnp.float32), self.scale, self.offset
    if not all(count in (1, size) for count, size in zip(scale.shape, values.shape, strict=True)):
      values, scale = _split(values, self.scale.shape), _split(scale, self.scale.shape)
      offset = None if offset is None else _split(offset, self.scale.shape)
    x = values * scale if offset is None else values * scale + offset
    x = x.reshape(self.values.shape)
    return (x if self.factor is None else x / self.factor).astype(dtype)

  def cast(self, dtype: jnp.dtype) -> "QTensor":
    return self  # its values have a type of their own, and the scales stay float32

  def einsum(self, equation: str, x: jax.Array) -> jax.Array:
    """Returns the product; with rounded activations, of int8 with int8, added in int32."""
    if not self.activations:
      return super().einsum(equation, x)
    letters, outputs = equation.split(",")[1].split("->")
    count = sum(letter not in outputs for letter in letters)  # axes that are summed over, the last ones of x
    axes = tuple(range(x.ndim - count, x.ndim))
    x_f32 = x.astype(jnp.float32)
    if self.factor is not None:
      x_f32 /= self.factor.reshape((1,) * (x.ndim - count) + self.values.shape[:count])
    steps = jnp.max(jnp.abs(x_f32), axes, keepdims=True) / DTYPES["int8"]
    rounded = jnp.round(x_f32 / jnp.where(steps > 0, steps, 1.0)).astype(jnp.int8)
    y = jnp.einsum(equation, rounded, self.values, preferred_element_type=jnp.int32).astype(jnp.float32)
    own = self.scale.shape[count:]
    y *= steps.reshape(steps.shape[: x.ndim - count] + (1,) * len(own))
    return (y * self.scale.reshape((1,) * (y.ndim - len(own)) + own)).astype(x.dtype)

  def take(self, ids: jax.Array, dtype: jnp.dtype) -> jax.Array:
    """Returns rows; only these are widened."""
    row = lambda array: jnp.take(array, ids if array.shape[0] > 1 else jnp.zeros_like(ids), axis=0, mode="clip")  # noqa: E731
    values = row(self.values)
    offset = None if self.offset is None else row(self.offset)
    flat = lambda x: None if x is None else x.reshape(-1, x.shape[-1])  # noqa: E731
    rows = QTensor(flat(values), flat(row(self.scale)), flat(offset))
    return rows.dense(dtype).reshape(values.shape)

  def for_decoding(self, name: str) -> Leaf:
    """Returns integers of one layer, or of a table, as `Int8Rows` on a single CPU; otherwise the leaf as it is."""
    layout, table = current_layout(), name.endswith("table")
    alone = platform() == "cpu" and (layout is None or layout.mesh.size == 1) and not self.activations
    if not (alone and self.values.dtype in (jnp.int8, jnp.int4) and (table or re.search(r"layers/\d+/", name))):
      return self
    apart = name.endswith("out/kernel") and self.scale.shape[1] > 1 and self.scale.shape[0] < self.values.shape[0]
    if apart or ("mlp/" in name and self.values.ndim == 3):  # all experts of a layer
      return self  # the inputs of a group do not lie next to each other
    matrix = lambda x: None if x is None else x if table else as_matrix(name, x)  # noqa: E731
    values = matrix(self.values.astype(jnp.int8))
    factor = None if self.factor is None else jnp.broadcast_to(matrix(self.factor), (1, values.shape[1]))
    shape = None if table else self.values.shape
    return Int8Rows(values, shape, matrix(self.scale), matrix(self.offset), factor)

  def scores(self, x: jax.Array) -> jax.Array:
    if self.offset is not None or self.scale.shape[1] != 1:
      return super().scores(x)
    scores = leaves.scores(x, self.values.astype(x.dtype))  # one scale a row: it multiplies the row's scores
    return scores * self.scale[:, 0].reshape((1,) * (scores.ndim - 1) + (-1,))


def _split(x: jax.Array, counts: tuple[int, ...]) -> jax.Array:
  """Returns an array with each dimension as two, [blocks, size of a block]."""
  return x.reshape([size for n, count in zip(x.shape, counts, strict=True) for size in (count, n // count)])


def block_counts(shape: tuple[int, ...], inputs: range, group: int) -> tuple[int, ...]:
  """Returns the shape of the scales of a kernel: one for each output, or for each group of inputs of each output.

  Args:
    inputs: the input axes; groups run along the last of them first.
    group: inputs that share a scale, 0 for all. If it does not divide the inputs, their greatest common divisor.
  """
  counts, left = list(shape), group
  for axis in reversed(inputs):
    block = math.gcd(shape[axis], left) if group else shape[axis]
    counts[axis] = shape[axis] // block
    left = left // block if block == shape[axis] else 1
  return tuple(counts)


@functools.partial(jax.jit, static_argnums=(1, 2, 3))
def quantize(array: jax.Array, counts: tuple[int, ...], dtype: str, symmetric: bool = True) -> QTensor:
  """Returns an array with its values rounded to the nearest that the type has.

  Integers are within half a scale of the array.

  Args:
    counts: the shape of the scales, see `QTensor`.
    symmetric: no offset, and zero stays zero; else the least and the largest value of a block are the type's own.
  """
  x = _split(array.astype(jnp.float32), counts)
  within, top = tuple(range(1, x.ndim, 2)), DTYPES[dtype]
  if symmetric:
    offset, steps = None, jnp.max(jnp.abs(x), within, keepdims=True) / top
  else:
    low, high = (reduce(x, within, keepdims=True) for reduce in (jnp.min, jnp.max))
    steps = (high - low) / (2 * top + 1)
    offset = low + (top + 1) * steps
  steps = jnp.where(steps > 0, steps, 1.0)
  values = (x if offset is None else x - offset) / steps
  if dtype.startswith("int"):
    values = jnp.clip(jnp.round(values), -top - (not symmetric), top)
  values = values.astype(dtype).reshape(array.shape)
  return QTensor(values, steps.reshape(counts), None if offset is None else offset.reshape(counts))


def names_on(leaf: QTensor, names: tuple[str | None, ...], layout: Layout) -> tuple[str | None, ...]:
  """Returns the logical axes of all components of a leaf on a mesh: None where its shards would split a group."""
  sizes = zip(names, leaf.values.shape, leaf.scale.shape, strict=True)
  return tuple(
    None if axis and 1 < count < size and count % layout.num_shards(axis, size) else axis for axis, size, count in sizes
  )


MOST_ZEROS = 0.1  # of a kernel that was not pruned


@dataclasses.dataclass(frozen=True)
class Quantize:
  """Rounding to the nearest value, without data.

  dtype: of kernels: int8, int4, float8_e4m3fn or float8_e5m2. group: inputs of an output that share a scale; 0 is all
  of them. symmetric: no offset. tables: the type of vocabulary tables; empty leaves them as they are. table_group:
  values of a row that share a scale; 0 is all of them. targets: a regular expression that is searched in the paths of
  kernels. activations: what int8 kernels read is rounded to int8 as well, in each product (see `QTensor`).
  """

  dtype: str = "int8"
  group: int = 0
  symmetric: bool = True
  tables: str = "int8"
  table_group: int = 64
  targets: str = "kernel$"
  activations: bool = False

  def __post_init__(self):
    if self.activations and (self.dtype != "int8" or self.group or not self.symmetric):
      raise ValueError("rounded activations need int8 kernels with one symmetric scale for each output")
    for dtype in (self.dtype, *([self.tables] if self.tables else [])):
      if dtype not in DTYPES:
        raise ValueError(f"the type is one of {', '.join(DTYPES)}, not {dtype!r}")
    if self.group < 0 or self.table_group < 0:
      raise ValueError(f"a group has at least one value, not {min(self.group, self.table_group)}")
    if not self.symmetric and not self.dtype.startswith("int"):
      raise ValueError(f"{self.dtype} is symmetric around zero")
    check_pattern(self.targets)

  @property
  def needs_inputs(self) -> bool:
    return False

  def apply(
    self, task: Task, params: dict[str, LogicallyPartitioned], inputs: Mapping[str, jax.Array] | None = None
  ) -> dict[str, Parameter]:
    """Returns the parameters with kernels and tables quantized; see `Method`.

    Raises:
      UserError: nothing matches, or the model is quantized already.
    """
    for name, box in params.items():
      if isinstance(box.value, QTensor):
        raise UserError(f"quantize: the model is quantized already: {name} is {box.value.values.dtype}")
    plan = {name: settings for name, box in params.items() if (settings := self.settings(name, box)) is not None}
    if not plan:
      kernels = one_line(", ".join(name for name in params if name.endswith("kernel")))
      raise UserError(f"quantize: {self.targets!r} matches no kernel; those of this model: {kernels}")
    for name in plan if not self.symmetric else ():
      if name.endswith("kernel") and (zero := float(jnp.mean(params[name].value == 0))) > MOST_ZEROS:
        raise UserError(f"quantize: {zero:.0%} of {name} is zero, which an offset does not keep: use no --asymmetric")
    return {
      name: self.mark(name, quantize(box.value, *plan[name])) if name in plan else box.value
      for name, box in params.items()
    }

  def mark(self, name: str, leaf: QTensor) -> QTensor:
    """Returns a quantized parameter that rounds what it reads, if it is a kernel and that is wanted."""
    return leaf.replace(activations=self.activations and name.endswith("kernel"))

  def settings(self, name: str, box: LogicallyPartitioned) -> tuple[tuple[int, ...], str, bool] | None:
    """Returns the shape of the scales of a parameter, its type, and whether that is symmetric; None if it stays."""
    names, shape = box.names, box.value.shape
    if name.endswith("table") and names[0] in ("vocabulary", "characters"):
      return (block_counts(shape, range(1, len(shape)), self.table_group), self.tables, True) if self.tables else None
    if not name.endswith("kernel") or not re.search(self.targets, name):
      return None
    inputs = range(stacked_axes(names), first_output(names))
    return block_counts(shape, inputs, self.group), self.dtype, self.symmetric
