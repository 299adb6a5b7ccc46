"""Rows of a question, the paragraph that answers it, and paragraphs that look as if they did."""

import dataclasses
import functools
from typing import Any, ClassVar

import numpy as np

from lmjax.data.documents import Documents
from lmjax.data.objectives.labelled import Labelled, LabelledDocuments, examples
from lmjax.data.sources.base import BadRecord, Source
from lmjax.data.sources.examples import Question
from lmjax.data.tokenizers.base import Tokenizer
from lmjax.utils import bm25

SEARCHED = 50  # paragraphs among which hard negatives are looked for


@dataclasses.dataclass(frozen=True)
class Retrieval(Labelled):
  """A row for each question: itself in segment 1, its paragraph in segment 2, and hard negatives in further ones.

  Hard negatives are the paragraphs of the same source that BM25 finds for the question and that have none of its
  answers (Karpukhin et al., 2020, arXiv:2004.04906, section 3.2).

  negatives: hard ones of a row; it may have fewer. question_length: tokens of a question at most; the paragraphs share
  the rest of `length` equally.
  """

  negatives: int = 1
  question_length: int = 48
  kinds: ClassVar[tuple[type, str]] = (Question, "questions: use lmjax.data.sources.squad:Squad")
  debug_source: ClassVar[str] = "lmjax.data.sources.labelled_pairs:PythonDocQuestions"

  def __post_init__(self):
    super().__post_init__()
    if self.negatives < 0 or self.question_length < 1:
      raise ValueError("negatives is at least 0, and question_length at least 1")
    if self.labels or self.regression or self.class_weights or self.symmetric:
      raise ValueError("questions have no labels, no class_weights and no symmetric order")
    if self.length - self.question_length <= self.negatives:
      raise ValueError(f"length leaves no tokens for the paragraphs beside question_length={self.question_length}")

  @classmethod
  def debug(cls, settings: dict[str, Any]) -> dict[str, Any]:
    return super().debug(settings) | {"question_length": 8}

  def learned(self) -> dict[str, Any]:
    return {}

  def shared(self, tokenizer: Tokenizer | None = None) -> dict[str, Any]:
    return super().shared(tokenizer) | {"negatives": self.negatives}

  def make_tokenizer(self) -> Tokenizer:
    questions = examples(self.source, self.kinds)
    return self.tokenizer.make(text for question in questions for text in (question.question, question.context))

  def documents(self, source: Source, tokenizer: Tokenizer, seed: int | None, streams: int) -> Documents:
    return RetrievalDocuments(self, source, tokenizer, seed, streams)


class RetrievalDocuments(LabelledDocuments):
  """Questions as rows with their paragraph and hard negatives."""

  requires = "questions"
  reader: Retrieval

  @functools.cached_property
  def paragraphs(self) -> list[str]:
    """The distinct paragraphs of the source."""
    return list(dict.fromkeys(question.context for question in examples(self.source, Retrieval.kinds)))

  @functools.cached_property
  def _bm25(self) -> Any:
    return bm25.build(self.paragraphs)

  def negatives(self, question: Question) -> list[str]:
    """Returns the best paragraphs that do not answer a question."""
    if not self.reader.negatives:
      return []
    ranked = (self.paragraphs[number] for number, _ in bm25.best(self._bm25, question.question, SEARCHED))
    answers = [text.lower() for text, _ in question.answers]
    wrong = [p for p in ranked if p != question.context and not any(answer in p.lower() for answer in answers)]
    return wrong[: self.reader.negatives]

  def encode_text(self, document: Any) -> Any:
    if not isinstance(document, Question):
      return super().encode_text(document)
    if not document.answers or not document.context.strip():
      return BadRecord(document.where, "has no paragraph that answers it")
    reader, texts = self.reader, [document.context, *self.negatives(document)]
    share = (reader.length - reader.question_length) // (1 + reader.negatives)
    rows = [self.arrangement.row(self.arrangement.pieces(document.question), length=reader.question_length)]
    for segment, text in enumerate(texts, 2):
      rows.append(self.arrangement.row(self.arrangement.pieces(text), length=share, segment=segment))
    row = {key: np.concatenate([own[key] for own in rows]) for key in rows[0]}
    return [row | {"row_weights": np.float32(1)}], len("".join((document.question, *texts)).encode("utf-8"))
