"""Method: a change of trained parameters that makes them smaller."""

import re
from collections.abc import Mapping
from typing import Protocol

import jax

from lmjax.layers.leaves import Parameter
from lmjax.parallel.sharding import LogicallyPartitioned
from lmjax.tasks.base import Task


class Method(Protocol):
  """A dataclass of settings, which config.json of the result keeps."""

  @property
  def needs_inputs(self) -> bool:
    """Whether it looks at what the model reads."""

  def apply(
    self, task: Task, params: dict[str, LogicallyPartitioned], inputs: Mapping[str, jax.Array] | None = None
  ) -> dict[str, Parameter]:
    """Returns {path name: parameter}, arrays or leaf types; a parameter that stays is the same object.

    Args:
      task: the model computes in float32, without rematerialisation.
      params: arrays or leaves with their axis names, by path names.
      inputs: a batch that the model reads, for methods that need one.

    Raises:
      UserError: the method cannot be applied to this model.
    """


def check_pattern(pattern: str) -> None:
  """Raises ValueError for what is not a regular expression."""
  try:
    re.compile(pattern)
  except re.error as error:
    raise ValueError(f"{pattern!r} is not a regular expression: {error}") from error
