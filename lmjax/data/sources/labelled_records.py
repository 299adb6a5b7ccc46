"""Labelled examples of records: texts made of several fields, and choices."""

import dataclasses
import functools
import re
from collections.abc import Mapping, Sequence
from typing import Any

from lmjax.data.sources.base import BadRecord
from lmjax.data.sources.choices import MultipleChoice
from lmjax.data.sources.examples import Example
from lmjax.data.sources.indexed import Lines
from lmjax.utils.errors import UserError
from lmjax.utils.files import parse_json, read_text

FIELD = re.compile(r"\{([\w.]+)\}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Form:
  """Which fields of a record are an example.

  text, other: a key, or a template with keys in it such as `{word}: {sentence}`; `a.b` is the key b of the
  object under a. other: the second text of a pair; empty if there is none. choices: the texts of multiple choice
  instead, or the one key of a list of them: of strings, or of objects with `text` and `label`, to which the label then
  refers, else it is a number from 0. label: its key. names: {label in the data: its name}.
  """

  text: str = "text"
  other: str = ""
  choices: str | tuple[str, ...] = ()
  label: str = "label"
  names: dict[str, str] = dataclasses.field(default_factory=dict)

  def __post_init__(self):
    if self.other and self.choices:
      raise ValueError("an example has another text, or choices, not both")

  def example(self, record: Mapping[str, Any], where: str, label: Any = None) -> Example | MultipleChoice:
    """Returns the example of a record.

    Args:
      label: where it is not in the record.

    Raises:
      ValueError: what is missing, as the end of a sentence that starts with where the record is.
    """
    value = _field(record, self.label) if label is None else label
    if not isinstance(value, str | int | float):
      raise ValueError(f"has no label under {self.label!r}; its keys: {', '.join(record)}")
    name = str(value).lower() if isinstance(value, bool) else str(value)
    name, text = self.names.get(name, name), _text(record, self.text)
    if not self.choices:
      return Example(text, _text(record, self.other) if self.other else None, name, where)
    if not isinstance(self.choices, str):
      return MultipleChoice(text, tuple(_text(record, choice) for choice in self.choices), name, where)
    texts, labels = _choices(_field(record, self.choices), self.choices)
    if labels and name not in labels:
      raise ValueError(f"has the label {name!r}, and its choices have {', '.join(labels)}")
    return MultipleChoice(text, texts, str(labels.index(name)) if labels else name, where)


@dataclasses.dataclass(frozen=True)
class JsonRecords(Form, Lines):
  """An example in each line of JSON files, by path or glob, plain or gzipped.

  labels: a file with the label of each line, where they are apart. split: as `:90%`, empty for all. shuffle: number the
  lines in a fixed random order.
  """

  files: str | tuple[str, ...]
  labels: str = ""
  split: str = ""
  shuffle: bool = False

  @functools.cached_property
  def _labels(self) -> list[str]:
    labels = read_text(self.labels).split()
    if len(labels) != len(self._index.starts):
      raise UserError(f"data: {self.labels} has {len(labels)} labels for {len(self._index.starts)} lines")
    return labels

  def __getitem__(self, index: int) -> Example | MultipleChoice | BadRecord:
    line, where = self._index.document(index), self._index.where(index)
    if isinstance(line, BadRecord):
      return line
    label = self._labels[self._index.order[index]] if self.labels else None
    try:
      return self.example(parse_json(line), where, label)
    except ValueError as error:
      return BadRecord(where, str(error))


def _field(record: Any, key: str) -> Any:
  """Returns the value of a key, or of a.b; None where there is none."""
  for part in key.split("."):
    record = record.get(part) if isinstance(record, Mapping) else None
  return record


def _text(record: Mapping[str, Any], template: str) -> str:
  """Returns the text of a key, or of a template with keys in it."""

  def value(key: str) -> str:
    field = _field(record, key)
    if not isinstance(field, str):
      raise ValueError(f"has no text under {key!r}; its keys: {', '.join(record)}")
    return field

  return FIELD.sub(lambda match: value(match[1]), template) if FIELD.search(template) else value(template)


def _choices(value: Any, key: str) -> tuple[tuple[str, ...], list[str]]:
  """Returns the texts of choices, and the labels that they have of their own."""
  texts: Any
  labels: Any
  if isinstance(value, Mapping):  # of lists, as in columns
    texts, labels = value.get("text"), value.get("label")
  else:
    texts, labels = value, []
    if isinstance(value, Sequence) and value and all(isinstance(item, Mapping) for item in value):
      texts, labels = ([item.get(part) for item in value] for part in ("text", "label"))
  good = isinstance(texts, list) and isinstance(labels, list) and len(labels) in (0, len(texts))
  if not good or not all(isinstance(item, str) for item in (*texts, *labels)):
    raise ValueError(f"has no list of choices under {key!r}")
  return tuple(texts), labels
