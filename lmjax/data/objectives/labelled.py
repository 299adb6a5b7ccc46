"""Rows of labelled examples: a string, or a pair of them, with a class or a number to predict.

How texts are arranged follows from the kind of model; see `arrange`.
"""

import dataclasses
import math
import sys
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, ClassVar

import numpy as np

from lmjax.data.batch import Batch
from lmjax.data.buckets import Buckets
from lmjax.data.documents import Documents
from lmjax.data.objectives.arrange import Arrangement, pad
from lmjax.data.packer import Packer, Row
from lmjax.data.pipeline import Reader
from lmjax.data.schedule import proportions, schedule
from lmjax.data.sources.base import BadRecord, Source, check_skipped_fraction, read_document
from lmjax.data.sources.examples import Example
from lmjax.data.tokenizers.base import Tokenizer
from lmjax.utils.errors import UserError, one_line

EXAMPLES = (Example, "labelled examples: use a source of lmjax.data.sources.labelled")
SAMPLE = 1000  # examples whose lengths decide how often each bucket occurs


@dataclasses.dataclass(frozen=True)
class Labelled(Reader):
  """A row for each example of a source of `lmjax.data.sources.labelled`.

  labels: the names of the classes, in the order of their numbers; by default those of the training data, sorted; the
  run's config.json keeps them. regression: the labels are numbers to predict. buckets: lengths of rows, of which each
  example gets the shortest that it fits; by default `length` alone. class_weights: {label: loss weight}, 1 for others.
  delimiter, symmetric, characters: see `arrange.Arrangement`.
  """

  labels: tuple[str, ...] = ()
  regression: bool = False
  buckets: tuple[int, ...] = ()
  class_weights: dict[str, float] = dataclasses.field(default_factory=dict)
  delimiter: str = ""
  symmetric: bool = False
  characters: int = 50
  model_kind: ClassVar[str] = "encoder"
  in_order: ClassVar[bool] = False
  debug_source: ClassVar[str] = "lmjax.data.sources.labelled_pairs:PythonDocLabels"

  def __post_init__(self):
    super().__post_init__()
    if len(set(self.labels)) < len(self.labels) or (self.labels and self.regression):
      raise ValueError("labels are distinct names, and regression has none")
    if any(not 0 < bucket <= self.length for bucket in self.buckets):
      raise ValueError("buckets must be lengths from 1 to `length`")
    if any(not 0 <= weight < math.inf for weight in self.class_weights.values()):
      raise ValueError("class_weights are numbers of at least 0")

  @classmethod
  def debug(cls, settings: dict[str, Any]) -> dict[str, Any]:
    small = {"labels": [], "buckets": [], "class_weights": {}}
    return super().debug(settings) | {key: value for key, value in small.items() if key in settings}

  def learned(self) -> dict[str, Any]:
    if self.labels or self.regression:
      return {}
    labels = sorted({example.label for example in examples(self.source)})
    if len(labels) < 2:
      raise UserError(
        f"data: the training data has {len(labels)} label{'s' * (len(labels) != 1)}, and a task needs two at least"
      )
    return {"labels": tuple(labels)}

  def shared(self, tokenizer: Tokenizer | None = None) -> dict[str, Any]:
    return {"labels": tuple(self.labels), "characters": self.characters}

  def for_model(self, model: Any) -> Reader:
    reader = dataclasses.replace(self)
    object.__setattr__(reader, "model_kind", model.kind)
    return reader

  def make_tokenizer(self) -> Tokenizer:
    texts = (text for example in examples(self.source) for text in (example.text, example.other) if text)
    return self.tokenizer.make(texts)

  def position_size(self, training: bool) -> int:
    return 1 + len(self._lengths)

  @property
  def _lengths(self) -> tuple[int, ...]:
    return tuple(sorted({*self.buckets, self.length}))

  def arrangement(self, tokenizer: Tokenizer) -> Arrangement:
    """Returns how texts become the input of the model."""
    return Arrangement(self.model_kind, tokenizer, self.length, self.delimiter, self.symmetric, self.characters)

  def documents(self, source: Source, tokenizer: Tokenizer, seed: int | None, streams: int) -> Documents:
    unknown = [label for label in self.class_weights if label not in self.labels]
    if unknown and seed is not None:  # of training
      raise UserError(f"data.class_weights: {unknown[0]!r} is none of the labels {', '.join(self.labels)}")
    return LabelledDocuments(self, source, tokenizer, seed, streams)

  def rows(self, lengths: tuple[int, ...], order: list[int]) -> "LabelledRows":
    """Returns the packer of rows of some lengths; order: their indices, see `Buckets`."""
    return LabelledRows(lengths, order)

  def packers(self, documents: Documents, streams: Iterable[int]) -> dict[int, Packer]:
    assert isinstance(documents, LabelledDocuments)
    lengths = self._lengths
    counts = np.zeros(len(lengths), np.int64)
    step = max(len(documents.source) // SAMPLE, 1)
    for i in range(0, len(documents.source), step):
      row = read_document(documents.source, i, documents.encode)
      if not isinstance(row, BadRecord):
        counts[np.searchsorted(lengths, len(row[0][0]["inputs"]))] += 1
    if not counts.any():
      raise UserError("data: the source contains no example; check config.data.source")
    counts[-1] += not counts[-1]  # what is longer than all of the sample has a row to go to
    order = schedule(proportions(counts.tolist())).tolist()
    return {stream: self.rows(lengths, order) for stream in streams}

  def validate(self, tokenizer: Tokenizer, batch: int, steps: int = 0) -> list[Batch]:
    """Returns the batches of one pass over the validation data; see `Reader.validate`.

    Examples are in order of their length, and a batch has the shortest bucket that they fit; where the metrics need the
    tokens of each example, `in_order`, they are in the order of the data, and rows have `length`.

    Raises:
      UserError: there is no example, or more than 1 % of at least 100 are malformed.
    """
    documents = self.documents(self.validation, tokenizer, None, 1)
    encoded = [read_document(self.validation, i, documents.encode) for i in range(len(self.validation))]
    skipped = [row for row in encoded if isinstance(row, BadRecord)]
    report_skipped(skipped, len(encoded))
    packer, lengths = self.rows((self.length,), [0]), (self.length,) if self.in_order else self._lengths
    kept = [document for document in encoded if not isinstance(document, BadRecord)]
    rows = [([row], size / len(made)) for made, size in kept for row in made][: steps * batch or None]
    if not rows:
      raise UserError("data.validation: there is no example to validate on")
    rows, batches = rows if self.in_order else sorted(rows, key=lambda row: packer.tokens(row[0])), []
    for first in range(0, len(rows), batch):
      own = rows[first : first + batch]
      length = lengths[np.searchsorted(lengths, packer.tokens(own[-1][0]))]
      filled = [packer.fill(*row, length) for row in own]
      filled += [{key: np.zeros_like(value) for key, value in filled[0].items()}] * (batch - len(own))
      batches.append({key: np.stack([row[key] for row in filled]) for key in filled[0]})
    return batches


def examples(source: Source, kinds: tuple[type, str] = EXAMPLES) -> Iterator[Any]:
  """Yields the examples of a source that can be read.

  Args:
    kinds: their class, and what they are and where they come from, in words.

  Raises:
    UserError: the source has documents of another kind.
  """
  for document in (read_document(source, i) for i in range(len(source))):
    if isinstance(document, kinds[0]):
      yield document
    elif not isinstance(document, BadRecord):
      raise UserError(f"data: the rows need {kinds[1]}")


def report_skipped(skipped: list[BadRecord], read: int) -> None:
  """Prints one line on stderr for skipped validation records, and raises UserError where they are too many."""
  if skipped:
    check_skipped_fraction(read, skipped)
    first = skipped[0]
    message = f"lmjax: data.validation: {len(skipped)} of {read} records skipped; the first: {first.where} {first.why}"
    print(one_line(message, 1000), file=sys.stderr)


class LabelledDocuments(Documents):
  """Examples as rows without padding: a list with one of them."""

  requires = "labelled examples"

  def __init__(self, reader: Labelled, source: Source, tokenizer: Tokenizer, seed: int | None, streams: int):
    super().__init__(source, tokenizer, seed, streams)
    self.reader, self.arrangement = reader, reader.arrangement(tokenizer)
    self.numbers = {label: number for number, label in enumerate(reader.labels)}

  def encode_text(self, document: Any) -> Any:
    """Returns ([row], UTF-8 bytes of the text), or why an example is skipped."""
    if not isinstance(document, Example):
      raise UserError(f"data: the rows need {EXAMPLES[1]}")
    text, other, label, where = document
    if not text.strip() or (other is not None and not other.strip()):
      return BadRecord(where, "has an empty text")
    target = self._target(label)
    if isinstance(target, str):
      return BadRecord(where, target)
    weight = self.reader.class_weights.get(label, 1.0)
    row = self.arrangement(text, other) | target | {"row_weights": np.float32(weight)}
    return [row], len((text + (other or "")).encode("utf-8"))

  def _target(self, label: str) -> Row | str:
    """Returns the number of a label, or what is wrong with it."""
    if not self.reader.regression:
      unknown = f"has the label {label!r}, which is not one of the run's"
      return {"labels": np.int32(self.numbers[label])} if label in self.numbers else unknown
    try:
      value = float(label)
    except ValueError:
      value = math.nan
    return {"values": np.float32(value)} if math.isfinite(value) else f"has the label {label!r}, not a number"


class LabelledRows(Buckets):
  """An example in each row; see `Buckets`."""

  def __init__(self, lengths: Sequence[int], schedule: Sequence[int]):
    super().__init__(lengths, schedule)
    self.kept = 512 if len(self.lengths) > 1 else 1  # examples of a stream, as each is read once for every length

  def tokens(self, content: Any) -> int:
    return len(content[0]["inputs"]) if len(content) else 0

  def fill(self, content: Any, size: float, length: int) -> Row:
    row = content[0]
    arrays = {key: value for key, value in row.items() if np.ndim(value)}
    return row | pad(arrays, length) | {"bytes": np.float64(size)}
