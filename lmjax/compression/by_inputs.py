"""Quantization that looks at what kernels read; what GPTQ and AWQ share."""

import dataclasses
import math
from collections.abc import Mapping

import jax

from lmjax.compression import masks
from lmjax.compression.calibrate import calibrate
from lmjax.compression.lora import first_output
from lmjax.compression.quantize import QTensor, Quantize
from lmjax.layers.leaves import Parameter
from lmjax.parallel.sharding import LogicallyPartitioned
from lmjax.tasks.base import Task
from lmjax.utils.errors import UserError

Rounded = tuple[jax.Array, jax.Array, jax.Array, jax.Array | None]


@dataclasses.dataclass(frozen=True)
class ByInputs(Quantize):
  """Kernels whose inputs are seen are rounded to integers by them; all others, and tables, to the nearest."""

  def __post_init__(self):
    super().__post_init__()
    if not self.dtype.startswith("int"):
      raise ValueError(f"{type(self).__name__} rounds to integers, not to {self.dtype}")

  @property
  def needs_inputs(self) -> bool:
    return True

  def observe(self, x_TxI: jax.Array) -> jax.Array:
    """Returns what is known of the inputs of a kernel; it is added over batches."""
    raise NotImplementedError

  def round(self, weights_IxO: jax.Array, statistic: jax.Array, groups: int) -> Rounded:
    """Returns integers [I, O], scales and offsets [groups, O], and what the inputs were multiplied by [I] or None."""
    raise NotImplementedError

  def apply(
    self, task: Task, params: dict[str, LogicallyPartitioned], inputs: Mapping[str, jax.Array] | None = None
  ) -> dict[str, Parameter]:
    rounded = super().apply(task, params)
    if inputs is None:
      raise UserError(f"quantize: {type(self).__name__} needs calibration data")
    targets = {name for name, leaf in rounded.items() if isinstance(leaf, QTensor) and name.endswith("kernel")}
    return rounded | calibrate(task, params, targets, inputs, self.observe, self._change)[0]

  def _change(self, name: str, kernel: jax.Array, axes: tuple[str | None, ...], statistic: jax.Array) -> QTensor:
    plan = self.settings(name, LogicallyPartitioned(kernel, axes))
    assert plan is not None
    counts = plan[0]
    weights_IxO = masks.matrices(kernel, axes)[0]
    groups = math.prod(counts) // weights_IxO.shape[1]
    values, scale, offset, factor = self.round(weights_IxO, statistic, groups)
    if factor is not None:
      split = first_output(axes)
      factor = factor.reshape(kernel.shape[:split] + (1,) * (kernel.ndim - split))
    offset = None if self.symmetric else offset.reshape(counts)
    return self.mark(name, QTensor(values.reshape(kernel.shape), scale.reshape(counts), offset, factor))
