"""Any task's own terms on held-out data."""

import dataclasses

from lmjax.data.pipeline import Reader
from lmjax.data.tokenizers.base import Tokenizer
from lmjax.evals.base import Run, terms_over
from lmjax.parallel.sharding import Layout
from lmjax.tasks.base import Task
from lmjax.utils.pytree import Tree


@dataclasses.dataclass(frozen=True)
class ValidationLoss:
  """Each loss term and metric of the task, and their sum `loss`, over a pass of the validation data.

  steps: batches to measure on; 0 is all of it, exactly once.
  """

  steps: int = 0

  def prepare(self, task: Task, data: Reader, tokenizer: Tokenizer, batch: int, layout: Layout) -> Run:
    batches = data.validate(tokenizer, batch, self.steps)
    measure = terms_over(task, batches, data.length, layout)

    def run(params: Tree) -> dict[str, float]:
      found = {key: mean.value() for key, mean in measure(params).items()}
      return {"loss": sum(found[key] for key in task.counts(batches[0]))} | found

    return run
