"""What knowing only how often words come achieves in finding hidden ones."""

import dataclasses

import numpy as np

from lmjax.data.pipeline import Reader
from lmjax.data.sources.base import BadRecord
from lmjax.data.tokenizers.base import Tokenizer
from lmjax.evals.base import Run
from lmjax.parallel.sharding import Layout
from lmjax.tasks.base import Task


@dataclasses.dataclass(frozen=True)
class UnigramBaseline:
  """The unigram baseline of masked LM, on the places that the validation rows hide.

    masked_lm = mean over places of -log p(word), p(w) = (c(w) + 1) / (n + V) counted in the training text
    masked_accuracy = share of places that hide the commonest word of the training text

  steps: validation batches, as of the evaluation it stands beside.
  """

  steps: int = 0

  def prepare(self, task: Task, data: Reader, tokenizer: Tokenizer, batch: int, layout: Layout) -> Run:
    counts = np.ones(tokenizer.size)
    documents = data.documents(data.source, tokenizer, None, 1)
    for i in range(len(data.source)):
      found = documents.read(0, i)
      if not isinstance(found, BadRecord) and len(found[0]):
        counts += np.bincount(np.concatenate(found[0]), minlength=tokenizer.size)
    batches = data.validate(tokenizer, batch, self.steps)
    labels = np.concatenate([b["labels"][b["weights"] > 0] for b in batches])
    nll = -np.log(counts / counts.sum())
    scores = {
      "masked_lm": float(nll[labels].mean()),
      "masked_accuracy": float((labels == counts.argmax()).mean()),
    }
    return lambda params: scores
