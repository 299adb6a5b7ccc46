"""Evaluator: a measurement of parameters, the same on every host and of a fixed length."""

from collections.abc import Callable
from typing import Protocol

from lmjax.data.pipeline import Reader
from lmjax.data.tokenizers import Tokenizer
from lmjax.parallel.sharding import Layout
from lmjax.tasks.base import Task
from lmjax.utils.pytree import Tree

Run = Callable[[Tree], dict[str, float]]


class Evaluator(Protocol):
  """A frozen dataclass that a config names; `prepare` gives the measurement itself."""

  def prepare(self, task: Task, data: Reader, tokenizer: Tokenizer, batch: int, layout: Layout) -> Run:
    """Returns run(params) -> {name: value}, where params are what the model sees."""
