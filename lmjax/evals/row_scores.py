"""The scores that a task's head gives to the rows of batches."""

from collections.abc import Callable, Sequence

import jax
import numpy as np

from lmjax.data.batch import Batch
from lmjax.layers.backend import jit
from lmjax.parallel.sharding import Layout
from lmjax.tasks.base import Task
from lmjax.utils.pytree import Tree


def row_scores(task: Task, layout: Layout, batches: Sequence[Batch]) -> Callable[[Tree], list[np.ndarray]]:
  """Returns scores(params) -> the scores of each batch, [B, classes] or [B, L, classes], float32.

  Labels, where the batches have them, are not read.
  """
  # On every device, as each host needs all rows.
  forward = jit(lambda params, batch: task.forward(params, batch).logits, out_shardings=layout.sharding())
  keys = [key for key in task.spec(1, 1) if key in batches[0]]
  batches = [{key: batch[key] for key in keys} for batch in batches]

  def scores(params: Tree) -> list[np.ndarray]:
    placed = (jax.device_put(batch, layout.batch(batch)) for batch in batches)
    return [np.asarray(forward(params, batch), np.float32) for batch in placed]

  return scores
