"""The two tasks of SuperGLUE (Wang et al., 2019) in which a line of the file has many examples, as pairs of texts."""

import dataclasses
import functools
from collections.abc import Iterator
from typing import Any

from lmjax.data.sources.base import BadRecord
from lmjax.data.sources.examples import Example
from lmjax.data.sources.indexed import Lines
from lmjax.utils.files import parse_json

LABELS = {0: "false", 1: "true"}
PLACEHOLDER, HIGHLIGHT = "@placeholder", "@highlight"


@dataclasses.dataclass(frozen=True)
class Texts(Lines):
  """Texts of JSON files, one in each line with the examples that it has, by path or glob, plain or gzipped.

  split: of the texts, as `:90%`, empty for all. shuffle: number the texts in a fixed random order.
  """

  files: str | tuple[str, ...]
  split: str = ""
  shuffle: bool = False

  @functools.cached_property
  def _records(self) -> list[Example | BadRecord]:
    return [record for i in range(len(self._index)) for record in self._read(i)]

  def __len__(self) -> int:
    return len(self._records)

  def __getitem__(self, index: int) -> Example | BadRecord:
    return self._records[index]

  def _read(self, i: int) -> Iterator[Example | BadRecord]:
    line, where = self._index.document(i), self._index.where(i)
    if isinstance(line, BadRecord):
      yield line
      return
    try:
      yield from [Example(*parts, where) for parts in self.examples(parse_json(line))]
    except Exception as error:
      yield BadRecord(where, f"is not as {type(self).__name__} has it: {type(error).__name__}: {error}")

  def examples(self, record: dict[str, Any]) -> Iterator[tuple[str, str, str]]:
    """Yields the text, the other text and the label of each example of a line."""
    raise NotImplementedError


class MultiRC(Texts):
  """Texts, each with a question, one of its answers, and whether that is right (Khashabi et al., 2018)."""

  def examples(self, record: dict[str, Any]) -> Iterator[tuple[str, str, str]]:
    for question in record["passage"]["questions"]:
      for answer in question["answers"]:
        asked = f"{_text(question['question'])} {_text(answer['text'])}"
        yield _text(record["passage"]["text"]), asked, LABELS[int(answer["label"])]


class ReCoRD(Texts):
  """Texts, each with a sentence that one of its names completes, and whether that is right (Zhang et al., 2018)."""

  def examples(self, record: dict[str, Any]) -> Iterator[tuple[str, str, str]]:
    text = _text(record["passage"]["text"])
    places = [(entity["start"], entity["end"] + 1) for entity in record["passage"]["entities"]]
    if not all(0 <= start < end <= len(text) for start, end in places):
      raise ValueError("a name is outside of the text")
    names = dict.fromkeys(text[start:end] for start, end in places)
    for question in record["qas"]:
      query, right = _text(question["query"]), {answer["text"] for answer in question["answers"]}
      if PLACEHOLDER not in query:
        raise ValueError(f"a query has no {PLACEHOLDER}")
      for name in names:
        yield text.replace(HIGHLIGHT, " "), query.replace(PLACEHOLDER, name), LABELS[name in right]


def _text(value: Any) -> str:
  if not isinstance(value, str) or not value.strip():
    raise ValueError(f"{value!r} has no characters")
  return value
