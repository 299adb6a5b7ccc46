"""The interface of evaluators, which measure parameters and take the same number of steps on every host."""

import dataclasses
from collections.abc import Callable
from typing import Protocol

import jax
import numpy as np

from lmjax.data.batch import Batch, check
from lmjax.data.pipeline import Reader
from lmjax.data.tokenizers.base import Tokenizer
from lmjax.layers.backend import jit
from lmjax.parallel.sharding import Layout
from lmjax.tasks.base import FrozenModel, Task
from lmjax.utils.metrics import Mean, add
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


def sum_terms(context: Context, batches: list[Batch]) -> Callable[[Tree], dict[str, Mean]]:
  """Returns measure(params) -> the (total, count) of each loss term and metric of the task, summed over the batches.

  If the task carries state between batches, the rows are rearranged so that each continues that of the batch before.

  Raises:
    UserError: the batches do not have the keys or shapes that the task needs.
  """
  task = context.task
  rows = len(batches[0]["weights"])
  keys = task.spec(rows, context.data.length)
  check(batches[0], keys)
  batches = [{key: batch[key] for key in keys} for batch in batches]
  start = task.initial_carry(rows)
  if jax.tree.leaves(start):
    whole = {key: np.concatenate([batch[key] for batch in batches]) for key in keys}
    streams = {key: a.reshape(rows, len(batches), *a.shape[1:]) for key, a in whole.items()}
    batches = [{key: a[:, i] for key, a in streams.items()} for i in range(len(batches))]
  loss = jit(task.loss)

  def measure(params: Tree) -> dict[str, Mean]:
    terms, carry = {}, start
    for batch in batches:
      batch_terms, carry = loss(params, context.frozen, carry, jax.device_put(batch, context.layout.batch(batch)))
      terms = add(terms, batch_terms)
    return terms

  return measure
