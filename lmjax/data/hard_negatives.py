"""Paragraphs that look as if they answered a question, and do not."""

import collections
import functools
from typing import Any

from lmjax.data.sources.base import Source, read_document
from lmjax.data.sources.examples import Question
from lmjax.utils import bm25

SEARCHED = 50  # paragraphs among which hard negatives are looked for


class HardNegatives:
  """Finds paragraphs of a source of questions by BM25 (Karpukhin et al., 2020, arXiv:2004.04906, section 3.2).

  They have none of the answers of a question, and answer the same question nowhere in the source.
  """

  def __init__(self, source: Source):
    self.source = source

  @functools.cached_property
  def answered(self) -> dict[str, set[str]]:
    """Each paragraph, and the questions that it answers."""
    answered: dict[str, set[str]] = collections.defaultdict(set)
    for question in (read_document(self.source, i) for i in range(len(self.source))):
      if isinstance(question, Question):
        answered[question.context] |= {question.question} if question.answers else set()
    return dict(answered)

  @functools.cached_property
  def _bm25(self) -> Any:
    return bm25.build(list(self.answered))

  def __call__(self, question: Question, count: int) -> list[str]:
    """Returns the best paragraphs that do not answer a question, at most `count`."""
    if not count:
      return []
    paragraphs, answers = list(self.answered), [text.lower() for text, _ in question.answers]
    ranked = [paragraphs[number] for number, _ in bm25.best(self._bm25, question.question, SEARCHED)]
    wrong = (p for p in ranked if p != question.context and question.question not in self.answered[p])
    return [p for p in wrong if not any(answer in p.lower() for answer in answers)][:count]
