"""F1 of entities, as CoNLL's script counts them, by seqeval, with a bootstrap interval."""

import dataclasses

import numpy as np

from lmjax.data.objectives.labelled import examples
from lmjax.data.objectives.tagging import Tagging
from lmjax.data.sources.base import BadRecord
from lmjax.evals.base import Context, Measure
from lmjax.evals.bootstrap import limits
from lmjax.evals.row_scores import row_scores
from lmjax.utils.errors import UserError
from lmjax.utils.pytree import Tree

try:
  from seqeval.metrics.sequence_labeling import get_entities
except ImportError as error:
  raise UserError("the F1 of entities needs seqeval: pip install 'lmjax[tasks]'") from error


@dataclasses.dataclass(frozen=True)
class EntityF1:
  """Precision, recall and F1 of the entities in the validation sentences; an entity is right if its ends and type are.

    f1 = 2 correct / (predicted + true), over all sentences

  Words that are cut off, as their sentence is longer than a row, are predicted as `O`. f1_low, f1_high: of the 95 %
  bootstrap interval over `resamples` samples of the sentences (Efron, 1979).
  """

  resamples: int = 1000

  def __post_init__(self):
    if self.resamples < 0:
      raise ValueError("resamples is at least 0")

  def prepare(self, context: Context) -> Measure:
    data = context.data
    if not isinstance(data, Tagging):
      raise UserError("evals: entities need tagged sentences, data.kind=lmjax.data.objectives.tagging:Tagging")
    batches = data.validate(context.tokenizer, context.batch)
    documents = data.documents(data.validation, context.tokenizer, None, 1)
    kept = [e for e in examples(data.validation, data.kinds) if not isinstance(documents.encode(e), BadRecord)]
    places = [data.arrangement(context.tokenizer).words(sentence.words)[1] for sentence in kept]
    scores = row_scores(context.task, context.layout, batches)

    def measure(params: Tree) -> dict[str, float]:
      best = np.concatenate([batch.argmax(axis=-1) for batch in scores(params)])
      counts = [
        count(sentence.tags, tags_of(row, first, data.labels))
        for sentence, row, first in zip(kept, best, places, strict=False)
      ]
      return f1(np.array(counts), self.resamples)

    return measure


def tags_of(best_L: np.ndarray, first: list[int], labels: tuple[str, ...]) -> list[str]:
  """Returns the tag of each word, by the place of its first token; `O` where that is -1."""
  return [labels[best_L[place]] if place >= 0 else "O" for place in first]


def count(true: tuple[str, ...], predicted: list[str]) -> tuple[int, int, int]:
  """Returns the numbers of correct, of predicted and of true entities of a sentence."""
  wanted, given = (set(get_entities(list(tags))) for tags in (true, predicted))
  return len(wanted & given), len(given), len(wanted)


def f1(counts_Nx3: np.ndarray, resamples: int) -> dict[str, float]:
  """Returns precision, recall and F1 of the counts of sentences, and the interval of F1."""
  correct, predicted, true = map(float, counts_Nx3.sum(axis=0))
  values = {"precision": correct / max(predicted, 1.0), "recall": correct / max(true, 1.0)}
  return values | {"f1": _f1(counts_Nx3)} | limits("f1", counts_Nx3, _f1, resamples=resamples)


def _f1(counts_Nx3: np.ndarray) -> float:
  correct, predicted, true = map(float, counts_Nx3.sum(axis=0))
  return 2 * correct / max(predicted + true, 1.0)
