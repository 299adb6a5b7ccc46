"""The unigram baseline of masked language modelling."""

import dataclasses

import numpy as np

from lmjax.data.sources.base import BadRecord
from lmjax.evals.base import Context, Measure


@dataclasses.dataclass(frozen=True)
class UnigramBaseline:
  """The loss and accuracy of a unigram model at the masked positions of the validation rows.

    masked_lm = mean over masked positions of -log p(w),  p(w) = (c(w) + 1) / (n + V),  counted in the training text
    masked_accuracy = fraction of masked positions whose token is the most frequent one of the training text

  steps: number of validation batches; 0 is one full pass. Set it as in the evaluator with which to compare.
  """

  steps: int = 0

  def prepare(self, context: Context) -> Measure:
    data, tokenizer = context.data, context.tokenizer
    counts = np.ones(tokenizer.size)
    documents = data.documents(data.source, tokenizer, None, 1)
    for i in range(len(data.source)):
      document = documents.read(0, i)
      if not isinstance(document, BadRecord) and len(document[0]):
        counts += np.bincount(np.concatenate(document[0]), minlength=tokenizer.size)
    batches = data.validate(tokenizer, context.batch, self.steps)
    labels = np.concatenate([batch["labels"][batch["weights"] > 0] for batch in batches])
    nll = -np.log(counts / counts.sum())
    scores = {
      "masked_lm": float(nll[labels].mean()),
      "masked_accuracy": float((labels == counts.argmax()).mean()),
    }
    return lambda params: scores
