"""Extracted answers: the best span of all windows of a paragraph, compared as SQuAD's script does."""

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from lmjax.data.objectives.labelled import examples
from lmjax.data.objectives.spans import Spans, Window
from lmjax.data.sources.base import BadRecord
from lmjax.evals.base import Context, Measure
from lmjax.evals.row_scores import row_scores
from lmjax.evals.squad_scores import compare, summarize
from lmjax.utils.errors import UserError
from lmjax.utils.pytree import Tree


class Answer(NamedTuple):
  """A span of a paragraph, empty for none, the character it starts at, and by how much it beats "no answer"."""

  text: str
  start: int
  margin: float


@dataclasses.dataclass(frozen=True)
class AnswerMetrics:
  """Exact match and F1 of the answers to the validation questions, as SQuAD defines them, from 0 to 1.

    exact = fraction of answers equal to one of the true ones;  f1 = mean of the best F1 of their words

  Lower case, without punctuation and articles; where there is no answer, none must be given (Rajpurkar et al., 2018).
  longest: tokens of an answer at most. f1_low, f1_high: of the 95 % bootstrap interval over `resamples` samples.
  """

  longest: int = 30
  resamples: int = 1000

  def __post_init__(self):
    if self.longest < 1 or self.resamples < 0:
      raise ValueError("longest is at least 1, and resamples at least 0")

  def prepare(self, context: Context) -> Measure:
    data = context.data
    if not isinstance(data, Spans):
      raise UserError("evals: answers need questions, data.kind=lmjax.data.objectives.spans:Spans")
    batches = data.validate(context.tokenizer, context.batch)
    documents = data.documents(data.validation, context.tokenizer, None, 1)
    questions = [q for q in examples(data.validation, data.kinds) if not isinstance(documents.encode(q), BadRecord)]
    arrangement = data.arrangement(context.tokenizer)
    windows = [data.windows(arrangement, q.question, q.context) for q in questions]
    scores = row_scores(context.task, context.layout, batches)

    def measure(params: Tree) -> dict[str, float]:
      rows, at, values = np.concatenate(scores(params)), 0, []
      for question, own in zip(questions, windows, strict=True):
        answer = best_answer(question.context, own, rows[at : at + len(own)], self.longest, data.answerable)
        at += len(own)
        values.append(compare(answer.text, [text for text, _ in question.answers]))
      return summarize(np.array(values), self.resamples)

    return measure


def best_answer(
  context: str, windows: Sequence[Window], scores_WxLx2: np.ndarray, longest: int, answerable: bool
) -> Answer:
  """Returns the span with the largest sum of its two scores, among all windows.

  No answer where that of the first token is larger in every window, unless the question is `answerable`.
  """
  best, null = Answer("", 0, -np.inf), np.inf
  for window, scores_Lx2 in zip(windows, scores_WxLx2, strict=True):
    null = min(null, float(scores_Lx2[0].sum()))
    size = len(window.offsets)
    starts, ends = scores_Lx2[window.place : window.place + size].T
    sums = starts[:, None] + ends[None]
    allowed = np.triu(np.ones_like(sums, bool)) & ~np.triu(np.ones_like(sums, bool), longest)
    if not size:
      continue
    first, last = np.unravel_index(np.argmax(np.where(allowed, sums, -np.inf)), sums.shape)
    if sums[first, last] > best.margin:
      begin, end = window.offsets[first][0], window.offsets[last][1]
      text = context[begin:end]  # tokens of byte-level BPE start with the space before a word
      best = Answer(text.strip(), begin + len(text) - len(text.lstrip()), float(sums[first, last]))
  margin = best.margin - null
  return Answer("", 0, margin) if margin < 0 and not answerable else best._replace(margin=margin)
