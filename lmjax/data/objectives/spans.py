"""Rows of questions with windows of their paragraphs, in which an answer is a span (Devlin et al., 2019, sec. 4.2)."""

import dataclasses
import re
from collections.abc import Iterable
from typing import Any, ClassVar, NamedTuple

import numpy as np

from lmjax.data.documents import Documents
from lmjax.data.objectives.arrange import Arrangement, pad
from lmjax.data.objectives.labelled import Labelled, LabelledDocuments, examples
from lmjax.data.packer import Packer, Position, ReadDocument, Row
from lmjax.data.sources.base import BadRecord, Source
from lmjax.data.sources.examples import Question
from lmjax.data.tokenizers.base import Bytes, Tokenizer
from lmjax.data.tokenizers.bpe import BPE
from lmjax.data.tokenizers.special import B
from lmjax.data.tokenizers.words import PATTERNS, Words
from lmjax.utils.errors import UserError


class Window(NamedTuple):
  """A question with a part of its paragraph; place: where that is in the row; offsets: of its tokens, in characters."""

  row: Row
  place: int
  offsets: list[tuple[int, int]]


@dataclasses.dataclass(frozen=True)
class Spans(Labelled):
  """Rows of a question and a window of its paragraph; a long paragraph has several windows.

  overlap: tokens that consecutive windows share. question_length: tokens of a question at most, the rest is cut off.
  answerable: whether every question has an answer in its paragraph; otherwise the answer may be the first token of the
  row, which says that there is none (Devlin et al., 2019, section 4.3). The answer of a training question is its first.
  """

  overlap: int = 64
  question_length: int = 64
  answerable: bool = False
  kinds: ClassVar[tuple[type, str]] = (Question, "questions: use lmjax.data.sources.squad:Squad")
  in_order: ClassVar[bool] = True
  debug_source: ClassVar[str] = "lmjax.data.sources.labelled_pairs:PythonDocQuestions"

  def __post_init__(self):
    super().__post_init__()
    if self.overlap < 0 or self.question_length < 1:
      raise ValueError("overlap is at least 0, and question_length at least 1")
    if self.labels or self.regression or self.buckets or self.class_weights:
      raise ValueError("questions have no labels, no buckets and no class_weights")

  @classmethod
  def debug(cls, settings: dict[str, Any]) -> dict[str, Any]:
    return super().debug(settings) | {"overlap": 4, "question_length": 8}

  def learned(self) -> dict[str, Any]:
    return {}

  def make_tokenizer(self) -> Tokenizer:
    questions = examples(self.source, self.kinds)
    return self.tokenizer.make(text for question in questions for text in (question.question, question.context))

  def position_size(self, training: bool) -> int:
    return 2

  def documents(self, source: Source, tokenizer: Tokenizer, seed: int | None, streams: int) -> Documents:
    return QuestionDocuments(self, source, tokenizer, seed, streams)

  def packers(self, documents: Documents, streams: Iterable[int]) -> dict[int, Packer]:
    return {stream: WindowRows(self.length) for stream in streams}

  def windows(self, arrangement: Arrangement, question: str, context: str) -> list[Window]:
    """Returns the rows of a question, without padding, in the order of its paragraph.

    Raises:
      UserError: `length` leaves no space for the paragraph.
    """
    tokenizer = arrangement.tokenizer
    first = arrangement.pieces(question)[: self.question_length]
    pieces, offsets = pieces_with_offsets(tokenizer, context)
    template = arrangement.template
    space = self.length - template.added(True) - len(first)
    if space <= self.overlap:
      raise UserError(
        f"data.length: {self.length} tokens leave {max(space, 0)} for the paragraph, which must be more than "
        f"data.overlap, {self.overlap}"
      )
    place = len(first) + sum(piece >= 0 for piece, _ in template.pair[: [p for p, _ in template.pair].index(B)])
    made, start = [], 0
    while start == 0 or start + self.overlap < len(pieces):
      part = slice(start, start + space)
      made.append(Window(arrangement.row(first, pieces[part]), place, offsets[part]))
      start += space - self.overlap
    return made


class QuestionDocuments(LabelledDocuments):
  """Questions as the rows of their windows, with `starts` and `ends` of the answer; 0 where it is not in the window."""

  requires = "questions"
  reader: Spans

  def encode_text(self, document: Any) -> Any:
    if not isinstance(document, Question):
      raise UserError(f"data: the rows need {Spans.kinds[1]}")
    if not document.answers and self.reader.answerable:
      return BadRecord(document.where, "has no answer, and data.answerable is true")
    rows = []
    for window in self.reader.windows(self.arrangement, document.question, document.context):
      start, end = place_of(window, *document.answers[0]) if document.answers else (0, 0)
      row = window.row | {"starts": np.int32(start), "ends": np.int32(end), "row_weights": np.float32(1)}
      rows.append(row)
    return rows, len(document.context.encode("utf-8"))


def place_of(window: Window, text: str, start: int) -> tuple[int, int]:
  """Returns the first and last token, in the row, of an answer; (0, 0) if the window does not have all of it."""
  offsets, end = window.offsets, start + len(text)
  if not offsets or start < offsets[0][0] or end > offsets[-1][1]:
    return 0, 0
  first = next(i for i, (_, stop) in enumerate(offsets) if stop > start)
  last = max(i for i, (begin, _) in enumerate(offsets) if begin < end)
  return (window.place + first, window.place + last) if first <= last else (0, 0)


def pieces_with_offsets(tokenizer: Tokenizer, text: str) -> tuple[list, list[tuple[int, int]]]:
  """Returns the tokens of a string (words, for a tokenizer of words), and where each begins and ends, in characters.

  Raises:
    UserError: the kind of tokenizer does not say it.
  """
  if isinstance(tokenizer, Words):
    matches = [m for m in re.finditer(PATTERNS[tokenizer.split_by], text) if m[0] != "\n"]
    return [m[0] for m in matches], [m.span() for m in matches]
  if isinstance(tokenizer, Bytes):
    sizes = [len(character.encode("utf-8")) for character in text]
    return list(tokenizer.encode(text)), [(i, i + 1) for i, size in enumerate(sizes) for _ in range(size)]
  if isinstance(tokenizer, BPE):
    encoding = tokenizer.fast.encode(text, add_special_tokens=False)
    return list(encoding.ids), list(encoding.offsets)
  raise UserError(
    f"data.tokenizer: a {type(tokenizer).__name__} tokenizer does not say where its tokens are in a string"
  )


class WindowRows:
  """A window in each row. Position: the question to read next, and the number of its window."""

  def __init__(self, length: int):
    self.length = length

  def row(self, read: ReadDocument, position: Position) -> tuple[Row, Position]:
    number, window = position
    rows, size = read(number)
    while window >= len(rows):
      number, window = number + 1, 0
      rows, size = read(number)
    return self.fill(rows[window], size / len(rows)), (number, window + 1)

  def fill(self, row: Row, size: float) -> Row:
    """Returns a row with padding."""
    arrays = {key: value for key, value in row.items() if np.ndim(value)}
    return row | pad(arrays, self.length) | {"bytes": np.float64(size)}
