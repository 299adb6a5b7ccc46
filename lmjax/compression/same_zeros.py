"""A mask that another model has: the ticket of one task, tried on another."""

import dataclasses
import re
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lmjax.compression.method import check_pattern
from lmjax.compression.quantize import QTensor
from lmjax.layers.leaves import Parameter
from lmjax.parallel.sharding import LogicallyPartitioned
from lmjax.tasks.base import Task
from lmjax.utils import names
from lmjax.utils.errors import UserError, one_line


@dataclasses.dataclass(frozen=True)
class SameZeros:
  """Kernels become zero where those of another model of the same shape are (Chen et al., 2020, arXiv:2007.12223).

  mask: a saved model, such as the last ticket of `lmjax lottery`. targets: a regular expression that is searched in the
  paths of kernels; those of heads, which belong to a task, are left out by default.
  """

  mask: str
  targets: str = "^model/.*kernel$"

  def __post_init__(self):
    check_pattern(self.targets)

  @property
  def needs_inputs(self) -> bool:
    return False

  def apply(
    self, task: Task, params: dict[str, LogicallyPartitioned], inputs: Mapping[str, jax.Array] | None = None
  ) -> dict[str, Parameter]:
    """Returns the parameters with zeros in the kernels; see `Method`.

    Raises:
      UserError: nothing matches, the model is quantized, or the other lacks a kernel, or has no zeros.
    """
    kernels = [name for name in params if name.endswith("kernel")]
    targets = [name for name in kernels if re.search(self.targets, name)]
    if not targets:
      raise UserError(f"prune: {self.targets!r} matches no kernel; those of this model: {one_line(', '.join(kernels))}")
    if any(isinstance(box.value, QTensor) for box in params.values()):
      raise UserError("prune: the model is quantized; prune it before it is quantized")
    others: dict[str, Any] = names.load("lmjax.storage.base:open")(self.mask).parameters()
    changed: dict[str, Parameter] = {name: box.value for name, box in params.items()}
    zeros = 0
    for name in targets:
      shape = tuple(others[name].shape) if name in others else None
      if shape != params[name].value.shape:
        what = f"has {name} of shape {list(shape)}" if shape else f"does not have {name}"
        raise UserError(f"prune: {self.mask} {what}, and this model has it of shape {list(params[name].value.shape)}")
      gone = np.asarray(others[name]) == 0
      zeros += int(gone.sum())
      changed[name] = jnp.where(gone, 0.0, params[name].value)
    if not zeros:
      raise UserError(f"prune: {self.mask} has no zeros in its kernels, so it is not a mask; give a pruned model")
    return changed
