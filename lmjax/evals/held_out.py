"""Any task's own terms on held-out data."""

import dataclasses

import jax

from lmjax.data.batch import check
from lmjax.data.pipeline import Reader
from lmjax.data.tokenizers import Tokenizer
from lmjax.evals.base import Run
from lmjax.parallel.sharding import Layout
from lmjax.tasks.base import Task
from lmjax.utils.metrics import add
from lmjax.utils.pytree import Tree


@dataclasses.dataclass(frozen=True)
class HeldOut:
  """Each loss term and metric of the task, and their sum `loss`, over a pass of the validation data.

  steps: batches to measure on; 0 is all of it, exactly once.
  """

  steps: int = 0

  def prepare(self, task: Task, data: Reader, tokenizer: Tokenizer, batch: int, layout: Layout) -> Run:
    batches = data.validate(tokenizer, batch, self.steps)
    keys = task.spec(batch, data.length)
    check(batches[0], keys)
    totals = jax.jit(lambda params, batch: task.loss(params, {}, task.initial_carry(len(batch["inputs"])), batch)[0])

    def run(params: Tree) -> dict[str, float]:
      terms = {}
      for b in batches:
        rows = {key: b[key] for key in keys}
        terms = add(terms, totals(params, jax.device_put(rows, layout.batch(rows))))
      found = {key: mean.value() for key, mean in terms.items()}
      return {"loss": sum(found[key] for key in task.counts(batches[0]))} | found

    return run
