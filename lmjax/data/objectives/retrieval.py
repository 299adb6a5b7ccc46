"""Rows of a question, the paragraph that answers it, and paragraphs that look as if they did."""

import dataclasses
from typing import Any, ClassVar

import numpy as np

from lmjax.data.documents import Documents
from lmjax.data.hard_negatives import HardNegatives
from lmjax.data.objectives.labelled import Labelled, LabelledDocuments, examples
from lmjax.data.sources.base import BadRecord, Source
from lmjax.data.sources.examples import Question
from lmjax.data.tokenizers.base import Tokenizer


@dataclasses.dataclass(frozen=True)
class Retrieval(Labelled):
  """A row for each question: itself in segment 1, its paragraph in segment 2, and hard negatives in further ones.

  Hard negatives: see `HardNegatives`.

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

  def __init__(self, reader: Retrieval, source: Source, tokenizer: Tokenizer, seed: int | None, streams: int):
    super().__init__(reader, source, tokenizer, seed, streams)
    self.negatives = HardNegatives(source)

  def encode_text(self, document: Any) -> Any:
    if not isinstance(document, Question):
      return super().encode_text(document)
    if not document.answers or not document.context.strip():
      return BadRecord(document.where, "has no paragraph that answers it")
    reader, texts = self.reader, [document.context, *self.negatives(document, self.reader.negatives)]
    share = (reader.length - reader.question_length) // (1 + reader.negatives)
    rows = [self.arrangement.row(self.arrangement.pieces(document.question), length=reader.question_length)]
    for segment, text in enumerate(texts, 2):
      rows.append(self.arrangement.row(self.arrangement.pieces(text), length=share, segment=segment))
    row = {key: np.concatenate([own[key] for own in rows]) for key in rows[0]}
    return [row | {"row_weights": np.float32(1)}], len("".join((document.question, *texts)).encode("utf-8"))
