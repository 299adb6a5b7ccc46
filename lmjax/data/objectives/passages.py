"""Rows of the passages that a question is answered from, and the answer to write."""

import dataclasses
from collections.abc import Iterable, Sequence
from typing import Any, ClassVar

import numpy as np

from lmjax.data.documents import Documents
from lmjax.data.hard_negatives import HardNegatives
from lmjax.data.objectives.seq2seq import PairIds, PairRows, TextToText, fill
from lmjax.data.packer import Packer, Row
from lmjax.data.sources.base import BadRecord, Source, read_document
from lmjax.data.sources.examples import Question
from lmjax.data.tokenizers.base import Tokenizer
from lmjax.utils.errors import UserError


@dataclasses.dataclass(frozen=True)
class Passages(TextToText):
  """A row for each question: its paragraph and hard negatives as passages, and its first answer as the target.

  Each passage is the question and the text, in a segment of its own (Izacard and Grave, 2021, section 3). The target of
  a question without an answer has no words.

  negatives: passages of a row besides the paragraph, see `HardNegatives`; a row may have fewer. question_length: tokens
  of a question at most. A passage has an equal share of `length`, of which the text gets the rest. target_length:
  tokens of an answer at most.
  """

  target_length: int = 32
  packed: bool = False
  negatives: int = 4
  question_length: int = 48
  debug_source: ClassVar[str] = "lmjax.data.sources.labelled_pairs:PythonDocQuestions"

  def __post_init__(self):
    super().__post_init__()
    if self.packed or self.negatives < 0 or self.target_length < 1:
      raise ValueError("a question has a row of its own, negatives is at least 0, and target_length at least 1")
    if not 1 <= self.question_length < self.passage_length - 8:
      raise ValueError(
        f"question_length is at least 1, and leaves 9 tokens at least of a passage, which has length / (1 + negatives) "
        f"= {self.passage_length}"
      )

  @classmethod
  def debug(cls, settings: dict[str, Any]) -> dict[str, Any]:
    return super().debug(settings) | {"negatives": 1, "target_length": 8, "question_length": 4}

  @property
  def passage_length(self) -> int:
    """Tokens of a passage at most."""
    return self.length // (1 + self.negatives)

  def make_tokenizer(self) -> Tokenizer:
    questions = (read_document(self.source, i) for i in range(len(self.source)))
    return self.tokenizer.make(text for q in questions if isinstance(q, Question) for text in (q.question, q.context))

  def documents(self, source: Source, tokenizer: Tokenizer, seed: int | None, streams: int) -> Documents:
    return PassageDocuments(self, source, tokenizer, seed, streams)

  def packers(self, documents: Documents, streams: Iterable[int]) -> dict[int, Packer]:
    lengths = (self.length, self.target_length)
    return {stream: PassageRows(lengths, documents.tokenizer.start, self.packed) for stream in streams}


class PassageDocuments(Documents):
  """Questions as ([passages of ids], ids of the answer with its end token)."""

  requires = "questions"

  def __init__(self, reader: Passages, source: Source, tokenizer: Tokenizer, seed: int | None, streams: int):
    super().__init__(source, tokenizer, seed, streams)
    self.reader, self.negatives = reader, HardNegatives(source)

  def encode_text(self, document: Any) -> Any:
    if not isinstance(document, Question):
      raise UserError("data: passages need questions: use lmjax.data.sources.squad:Squad")
    if not document.context.strip():
      return BadRecord(document.where, "has no paragraph")
    reader, texts = self.reader, [document.context, *self.negatives(document, self.reader.negatives)]
    answer = document.answers[0][0] if document.answers else ""
    passages = encode_passages(self.tokenizer, document.question, texts, reader.passage_length, reader.question_length)
    target = [*self.tokenizer.encode(answer)[: reader.target_length - 1], self.tokenizer.end]
    return (passages, np.array(target, np.int32)), len(answer.encode("utf-8"))


class PassageRows(PairRows):
  """A question in each row, whose source has a segment for each passage."""

  def items(self, document: Any) -> Iterable[tuple[Sequence[int], tuple[PairIds, float]]]:
    (passages, target), size = document
    yield self.lengths, ((passages, target), size)

  def fill(self, items: list) -> Row:
    ((passages, target), size) = items[0] if items else (([], np.zeros(0, np.int32)), 0.0)
    source, ends = np.concatenate([*passages, np.zeros(0, np.int32)]), np.cumsum([0, *map(len, passages)])
    row = fill([((source, target), size)], self.lengths, self.start)
    for number, (start, end) in enumerate(zip(ends, ends[1:], strict=False), 1):
      row["segments"][start:end], row["positions"][start:end] = number, np.arange(end - start)
    return row


def encode_passages(
  tokenizer: Tokenizer, question: str, texts: Sequence[str], length: int, question_length: int
) -> list[np.ndarray]:
  """Returns the ids of a passage for each text, which follows the question.

  Args:
    length: tokens of a passage at most, of which the last is the end token.
    question_length: tokens of the question at most.
  """
  label, context, asked = tokenizer.encode_many(["question:", "context:", question])
  before = [*label, *asked[:question_length], *context]
  encoded = tokenizer.encode_many(texts)
  return [np.array([*[*before, *ids][: length - 1], tokenizer.end], np.int32) for ids in encoded]
