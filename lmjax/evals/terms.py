"""The loss terms of a task, summed over batches: what evaluators of a loss measure."""

from collections.abc import Callable

import jax
import numpy as np

from lmjax.data.batch import Batch, check
from lmjax.evals.base import Context
from lmjax.layers.backend import jit
from lmjax.utils.metrics import Mean, add
from lmjax.utils.pytree import Tree


def sum_terms(context: Context, batches: list[Batch]) -> Callable[[Tree], dict[str, Mean]]:
  """Returns measure(params) -> the (total, count) of each loss term and metric of the task, summed over the batches.

  If the task carries state between batches, the rows are rearranged so that each continues that of the batch before.

  Raises:
    UserError: the batches do not have the keys or shapes that the task needs.
  """
  task = context.task
  rows = len(batches[0]["weights"])
  keys = task.reads(rows, context.data.length)
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
