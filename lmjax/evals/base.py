"""The interface of evaluators, which measure parameters and take the same number of steps on every host."""

import dataclasses
from collections.abc import Callable
from typing import Protocol

from lmjax.data.pipeline import Reader
from lmjax.data.tokenizers.base import Tokenizer
from lmjax.parallel.sharding import Layout
from lmjax.tasks.base import FrozenModel, Task
from lmjax.utils.pytree import Tree

Measure = Callable[[Tree], dict[str, float]]


@dataclasses.dataclass(frozen=True)
class Context:
  """What an evaluator may use besides the parameters."""

  task: Task
  data: Reader
  tokenizer: Tokenizer
  batch: int  # rows of a global batch
  layout: Layout
  frozen: dict[str, FrozenModel] = dataclasses.field(default_factory=dict)  # models the task uses, not trained


class Evaluator(Protocol):
  """A frozen dataclass that a config names under `evals`."""

  def prepare(self, context: Context) -> Measure:
    """Returns measure(params) -> {name: value}; params are {"model", "heads"} as the model uses them."""
