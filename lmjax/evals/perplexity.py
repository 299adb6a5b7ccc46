"""Loss on held-out text, per token and per byte."""

import dataclasses
import math

from lmjax.data.pipeline import Reader
from lmjax.data.tokenizers.base import Tokenizer
from lmjax.evals.base import Run, terms_over
from lmjax.parallel.sharding import Layout
from lmjax.tasks.base import Task
from lmjax.utils.pytree import Tree


@dataclasses.dataclass(frozen=True)
class Perplexity:
  """The mean negative log-likelihood of a pass over the validation text.

    loss = nats per token;  perplexity = exp(loss);  bits_per_byte = total nats / ln 2 / UTF-8 bytes of the text

  steps: batches to measure on; 0 is all of the text, exactly once.
  """

  steps: int = 0

  def prepare(self, task: Task, data: Reader, tokenizer: Tokenizer, batch: int, layout: Layout) -> Run:
    batches = data.validate(tokenizer, batch, self.steps)
    text_bytes = sum(float(b["bytes"].sum()) for b in batches)
    measure = terms_over(task, batches, data.length, layout)

    def run(params: Tree) -> dict[str, float]:
      terms = measure(params)
      loss = terms["nll"].value()
      return {
        "loss": loss,
        "perplexity": math.exp(min(loss, 700.0)),
        "accuracy": terms["accuracy"].value(),
        "bits_per_byte": float(terms["nll"].total) / math.log(2) / text_bytes,
      }

    return run
