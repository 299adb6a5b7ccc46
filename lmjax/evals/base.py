"""Evaluator: a measurement of parameters, the same on every host and of a fixed length."""

from collections.abc import Callable
from typing import Protocol

import jax
import numpy as np

from lmjax.data.batch import Batch, check
from lmjax.data.pipeline import Reader
from lmjax.data.tokenizers.base import Tokenizer
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
  """Returns run(params) -> the task's loss terms and metrics, summed over the batches.

  Where the task carries something from batch to batch, each row of a batch goes on where it ended in the one before.
  """
  rows = len(batches[0]["weights"])
  keys = task.spec(rows, length)
  check(batches[0], keys)
  batches = [{key: batch[key] for key in keys} for batch in batches]
  start = task.initial_carry(rows)
  if jax.tree.leaves(start):
    whole = {key: np.concatenate([batch[key] for batch in batches]) for key in keys}
    turns = {key: a.reshape(rows, len(batches), *a.shape[1:]) for key, a in whole.items()}
    batches = [{key: a[:, i] for key, a in turns.items()} for i in range(len(batches))]
  totals = jax.jit(lambda params, carry, batch: task.loss(params, {}, carry, batch))

  def run(params: Tree) -> dict[str, Mean]:
    terms, carry = {}, start
    for batch in batches:
      found, carry = totals(params, carry, jax.device_put(batch, layout.batch(batch)))
      terms = add(terms, found)
    return terms

  return run
