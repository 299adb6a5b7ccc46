"""Evaluator: a measurement of parameters, the same on every host and of a fixed length."""

from collections.abc import Callable
from typing import Protocol

import jax

from lmjax.data.batch import Batch, check
from lmjax.data.pipeline import Reader
from lmjax.data.tokenizers import Tokenizer
from lmjax.parallel.sharding import Layout
from lmjax.tasks.base import Task
from lmjax.utils.metrics import Mean, add
from lmjax.utils.pytree import Tree

Run = Callable[[Tree], dict[str, float]]


class Evaluator(Protocol):
  """A frozen dataclass that a config names; `prepare` gives the measurement itself."""

  def prepare(self, task: Task, data: Reader, tokenizer: Tokenizer, batch: int, layout: Layout) -> Run:
    """Returns run(params) -> {name: value}, where params are what the model sees."""


def terms_over(task: Task, batches: list[Batch], length: int, layout: Layout) -> Callable[[Tree], dict[str, Mean]]:
  """Returns run(params) -> the task's loss terms and metrics, summed over the batches."""
  keys = task.spec(len(batches[0]["inputs"]), length)
  check(batches[0], keys)
  totals = jax.jit(lambda params, batch: task.loss(params, {}, task.initial_carry(len(batch["inputs"])), batch)[0])

  def run(params: Tree) -> dict[str, Mean]:
    terms = {}
    for batch in batches:
      rows = {key: batch[key] for key in keys}
      terms = add(terms, totals(params, jax.device_put(rows, layout.batch(rows))))
    return terms

  return run
