"""The loss and metrics of any task on its validation data."""

import dataclasses

from lmjax.evals.base import Context, Measure
from lmjax.evals.terms import sum_terms
from lmjax.utils.pytree import Tree


@dataclasses.dataclass(frozen=True)
class ValidationLoss:
  """The mean of each loss term and metric of the task on the validation data, and the weighted sum `loss`.

    loss = sum over the loss terms of coefficient x total / count

  steps: number of validation batches; 0 is one full pass.
  """

  steps: int = 0

  def prepare(self, context: Context) -> Measure:
    batches = context.data.validate(context.tokenizer, context.batch, self.steps)
    measure_terms = sum_terms(context, batches)

    def measure(params: Tree) -> dict[str, float]:
      values = {name: mean.value() for name, mean in measure_terms(params).items()}
      loss = sum(coefficient * values[name] for name, coefficient in context.task.terms.items())
      return {"loss": loss} | {name: value for name, value in values.items() if name != "loss"}

    return measure
