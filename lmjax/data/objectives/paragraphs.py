"""Rows of several paragraphs that a question is answered from, and the answer to write."""

import dataclasses
from collections.abc import Iterable, Sequence
from typing import Any, ClassVar

import numpy as np

from lmjax.data.documents import Documents
from lmjax.data.hard_negatives import HardNegatives
from lmjax.data.objectives.seq2seq import PairRows, TextToText, fill
from lmjax.data.packer import Packer, Row
from lmjax.data.pipeline import Reader
from lmjax.data.sources.base import BadRecord, Source, read_document
from lmjax.data.sources.examples import Question
from lmjax.data.tokenizers.base import Tokenizer
from lmjax.utils.errors import UserError


@dataclasses.dataclass(frozen=True)
class Paragraphs(TextToText):
  """A row for each question: its paragraph and hard negatives, and its first answer as the target.

  Each paragraph follows the question, in a segment of its own (Izacard and Grave, 2021, section 3). The target of a
  question without an answer has no words.

  length: tokens of all paragraphs with their questions; each has an equal share. negatives: paragraphs of a row besides
  its own, see `HardNegatives`; a row may have fewer. question_length: tokens of a question at most. target_length:
  tokens of an answer at most.
  """

  target_length: int = 32
  packed: bool = False
  negatives: int = 4
  question_length: int = 48
  debug_source: ClassVar[str] = "lmjax.data.sources.labelled_pairs:PythonDocQuestions"

  def __post_init__(self):
    super().__post_init__()
    wrong = self.packed or self.negatives < 0 or self.target_length < 1 or self.length % (1 + self.negatives)
    if wrong or not 1 <= self.question_length < self.paragraph_length - 8:
      raise ValueError("a question has a row of its own, 1 + negatives that divides length, and room for a paragraph")

  @classmethod
  def debug(cls, settings: dict[str, Any]) -> dict[str, Any]:
    return super().debug(settings) | {"length": 96, "negatives": 1, "target_length": 8, "question_length": 8}

  @property
  def paragraph_length(self) -> int:
    """Tokens of a question and a paragraph at most."""
    return self.length // (1 + self.negatives)

  def for_model(self, model: Any) -> Reader:
    if getattr(model.config, "paragraph", 0) != self.paragraph_length:
      raise UserError(f"data: paragraphs need a FusionInDecoder with model.paragraph={self.paragraph_length}")
    return self

  def make_tokenizer(self) -> Tokenizer:
    questions = (read_document(self.source, i) for i in range(len(self.source)))
    return self.tokenizer.make(text for q in questions if isinstance(q, Question) for text in (q.question, q.context))

  def documents(self, source: Source, tokenizer: Tokenizer, seed: int | None, streams: int) -> Documents:
    return ParagraphDocuments(self, source, tokenizer, seed, streams)

  def packers(self, documents: Documents, streams: Iterable[int]) -> dict[int, Packer]:
    lengths, start = (self.length, self.target_length), documents.tokenizer.start
    return {stream: ParagraphRows(lengths, start, self.paragraph_length) for stream in streams}


class ParagraphDocuments(Documents):
  """Questions as the ids of each paragraph, and then those of the answer."""

  requires = "questions"

  def __init__(self, reader: Paragraphs, source: Source, tokenizer: Tokenizer, seed: int | None, streams: int):
    super().__init__(source, tokenizer, seed, streams)
    self.reader, self.negatives = reader, HardNegatives(source)

  def encode_text(self, document: Any) -> Any:
    if not isinstance(document, Question):
      raise UserError("data: paragraphs need questions: use lmjax.data.sources.squad:Squad")
    if not document.context.strip():
      return BadRecord(document.where, "has no paragraph")
    reader, texts = self.reader, [document.context, *self.negatives(document, self.reader.negatives)]
    answer = document.answers[0][0] if document.answers else ""
    made = encode_paragraphs(self.tokenizer, document.question, texts, reader.paragraph_length, reader.question_length)
    target = [*self.tokenizer.encode(answer)[: reader.target_length - 1], self.tokenizer.end]
    return [*made, np.array(target, np.int32)], len(answer.encode("utf-8"))


class ParagraphRows(PairRows):
  """A question in each row, whose source has a segment of `size` tokens for each paragraph."""

  def __init__(self, lengths: tuple[int, int], start: int, size: int):
    super().__init__(lengths, start, packed=False)
    self.size = size

  def items(self, document: Any) -> Iterable[tuple[Sequence[int], Any]]:
    if len(document[0]):
      yield self.lengths, document

  def fill(self, items: list) -> Row:
    nothing = np.zeros(0, np.int32)
    (*paragraphs, target), size = items[0] if items else ([nothing], 0.0)
    row = fill([((nothing, target), size)], self.lengths, self.start)
    row["inputs"], row["segments"] = join_paragraphs(paragraphs, self.size, self.length)
    row["positions"] = np.where(row["segments"], np.arange(self.length) % self.size, 0).astype(np.int32)
    return row


def join_paragraphs(paragraphs: Sequence[np.ndarray], size: int, length: int) -> tuple[np.ndarray, np.ndarray]:
  """Returns the ids and segments [length] of paragraphs, each of `size` tokens with its padding."""
  ids, segments = np.zeros((2, length), np.int32)
  for number, paragraph in enumerate(paragraphs):
    own = slice(number * size, number * size + len(paragraph))
    ids[own], segments[own] = paragraph, number + 1
  return ids, segments


def encode_paragraphs(tokenizer: Tokenizer, question: str, texts: Sequence[str], length: int, most: int) -> list:
  """Returns the ids of the question and each text.

  Args:
    length: tokens of both at most, of which the last is the end token.
    most: tokens of the question at most.
  """
  label, context, asked = tokenizer.encode_many(["question:", "context:", question])
  before = [*label, *asked[:most], *context]
  encoded = tokenizer.encode_many(texts)
  return [np.array([*[*before, *ids][: length - 1], tokenizer.end], np.int32) for ids in encoded]
