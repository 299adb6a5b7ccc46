"""Rows of a context with several choices, of which one is right."""

import dataclasses
from typing import Any, ClassVar

import numpy as np

from lmjax.data.documents import Documents
from lmjax.data.objectives.arrange import Arrangement, pad
from lmjax.data.objectives.labelled import Labelled, LabelledDocuments, LabelledRows, examples
from lmjax.data.packer import Row
from lmjax.data.sources.base import BadRecord, Source
from lmjax.data.sources.choices import MultipleChoice
from lmjax.data.tokenizers.base import Tokenizer
from lmjax.utils.errors import UserError


@dataclasses.dataclass(frozen=True)
class Ranking(Labelled):
  """A row for each context, in which its choices are side by side, each after the context in an equal part of the row.

  length: tokens of a row, of which each choice has length / choices; so have buckets. labels: the numbers of the
  choices, from "0"; by default as many as an example of the training data has at most.
  """

  kinds: ClassVar[tuple[type, str]] = (MultipleChoice, "choices: use a source of lmjax.data.sources.labelled_records")
  debug_source: ClassVar[str] = "lmjax.data.sources.python_choices:PythonDocChoices"

  def __post_init__(self):
    super().__post_init__()
    if self.regression or self.symmetric or self.class_weights:
      raise ValueError("choices have no regression, no symmetric order and no class_weights")
    choices = len(self.labels)
    if self.labels != tuple(map(str, range(choices))):
      raise ValueError('labels are the numbers of the choices, "0", "1", ...')
    if choices and any(length % choices for length in (self.length, *self.buckets)):
      raise ValueError(f"length and buckets must be multiples of the {choices} choices")

  def learned(self) -> dict[str, Any]:
    if self.labels:
      return {}
    choices = max((len(example.choices) for example in examples(self.source, self.kinds)), default=0)
    if choices < 2:
      raise UserError("data: no example of the training data has two choices")
    if self.length % choices:
      raise UserError(f"data.length: {self.length} is not a multiple of the {choices} choices")
    return {"labels": tuple(map(str, range(choices)))}

  def make_tokenizer(self) -> Tokenizer:
    read = examples(self.source, self.kinds)
    return self.tokenizer.make(text for example in read for text in (example.text, *example.choices))

  def arrangement(self, tokenizer: Tokenizer) -> Arrangement:
    length = self.length // (len(self.labels) or 1)
    return Arrangement(self.model_kind, tokenizer, length, self.delimiter, characters=self.characters)

  def documents(self, source: Source, tokenizer: Tokenizer, seed: int | None, streams: int) -> Documents:
    return ChoiceDocuments(self, source, tokenizer, seed, streams)

  def rows(self, lengths: tuple[int, ...], order: list[int]) -> LabelledRows:
    return ChoiceRows(lengths, order, len(self.labels))


class ChoiceDocuments(LabelledDocuments):
  """Examples as rows in which all choices have the length of the longest; those that an example lacks are padding."""

  requires = "choices"

  def encode_text(self, document: Any) -> Any:
    if not isinstance(document, MultipleChoice):
      raise UserError(f"data: the rows need {Ranking.kinds[1]}")
    text, choices, label, where = document
    if not all(part.strip() for part in (text, *choices)):
      return BadRecord(where, "has an empty text")
    target, most = self._target(label), len(self.numbers)
    if isinstance(target, str):
      return BadRecord(where, target)
    if not target["labels"] < len(choices) <= most:
      return BadRecord(where, f"has {len(choices)} choices, the label {label!r}, and the run has {most} choices")
    rows = [self.arrangement(text, choice) for choice in choices]
    size = max(len(row["inputs"]) for row in rows)
    rows = [pad(row, size) for row in rows]
    rows += [{key: np.zeros_like(value) for key, value in rows[0].items()}] * (most - len(rows))
    row = {key: np.concatenate([row[key] for row in rows]) for key in rows[0]}
    return [row | target | {"row_weights": np.float32(1)}], len((text + "".join(choices)).encode("utf-8"))


class ChoiceRows(LabelledRows):
  """An example in each row, whose choices are padded apart."""

  def __init__(self, lengths: tuple[int, ...], order: list[int], choices: int):
    super().__init__(lengths, order)
    self.choices = choices

  def fill(self, content: Any, size: float, length: int) -> Row:
    def apart(value: np.ndarray) -> np.ndarray:
      parts = value.reshape(self.choices, -1, *value.shape[1:])
      return np.concatenate([pad({"": part}, length // self.choices)[""] for part in parts])

    row = {key: apart(value) if np.ndim(value) else value for key, value in content[0].items()}
    return row | {"bytes": np.float64(size)}
