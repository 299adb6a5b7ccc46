"""Perplexity and bits per byte on the validation text."""

import dataclasses
import math

from lmjax.evals.base import Context, Measure
from lmjax.evals.terms import sum_terms
from lmjax.utils.pytree import Tree


@dataclasses.dataclass(frozen=True)
class Perplexity:
  """The mean negative log-likelihood of the validation text.

    loss = nats per token;  perplexity = exp(loss);  bits_per_byte = total nats / ln 2 / UTF-8 bytes of the text
    accuracy = fraction of tokens that are the most probable prediction

  steps: number of validation batches; 0 is one full pass.
  """

  steps: int = 0

  def prepare(self, context: Context) -> Measure:
    batches = context.data.validate(context.tokenizer, context.batch, self.steps)
    text_bytes = sum(float(batch["bytes"].sum()) for batch in batches)
    measure_terms = sum_terms(context, batches)

    def measure(params: Tree) -> dict[str, float]:
      terms = measure_terms(params)
      loss = terms["nll"].value()
      return {
        "loss": loss,
        "perplexity": math.exp(min(loss, 700.0)),
        "accuracy": terms["accuracy"].value(),
        "bits_per_byte": float(terms["nll"].total) / math.log(2) / text_bytes,
      }

    return measure
