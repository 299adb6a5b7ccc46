"""From sources to batches: Grain tokenizes documents, packs them into rows and makes batches, ahead of training."""

import dataclasses
import functools
from collections.abc import Iterable, Sequence
from typing import Any, ClassVar

import grain
import numpy as np

from lmjax.data.batch import Batch
from lmjax.data.documents import Documents
from lmjax.data.packer import Document, Packer
from lmjax.data.sources.base import MIN_RECORDS, BadRecord, Source, check_skipped_fraction, texts
from lmjax.data.tokenizers.base import Tokenizer
from lmjax.data.tokenizers.registry import TokenizerConfig
from lmjax.utils.errors import UserError

CACHED_DOCUMENTS = 4  # of each stream


@dataclasses.dataclass(frozen=True)
class Reader:
  """Makes batches from the documents of sources; each objective has a subclass, which decides what a row is.

  length: tokens in a row. streams: number of independent sequences of documents (see `data.streams`), a divisor of the
  batch; 0 is one stream for each row. workers: processes that read and tokenize, rounded down to a divisor of the
  streams; 0 reads in a thread. version: increase it to continue a run with other data; the order of documents then
  starts again.
  """

  source: Source
  validation: Source
  length: int
  tokenizer: TokenizerConfig = TokenizerConfig()
  streams: int = 0
  workers: int = 0
  prefetch: int = 4  # batches made in advance
  version: int = 0
  debug_source: ClassVar[str] = "lmjax.data.sources.python_docs:PythonDocs"

  def __post_init__(self):
    if self.length < 1:
      raise ValueError(f"length must be at least 1 token, not {self.length}")
    if min(self.streams, self.workers, self.prefetch, self.version) < 0:
      raise ValueError("streams, workers, prefetch and version must be at least 0")

  @classmethod
  def debug(cls, settings: dict[str, Any]) -> dict[str, Any]:
    """Returns the config section `data` shrunk for debugging: short rows of the documentation of this Python."""
    return settings | {
      "length": 32,
      "workers": 0,
      "tokenizer": TokenizerConfig.debug(settings["tokenizer"]),
      "source": {"kind": cls.debug_source, "split": ":5%"},
      "validation": {"kind": cls.debug_source, "split": "99.5%:"},
    }

  def make_tokenizer(self) -> Tokenizer:
    """Returns the tokenizer: the one at `tokenizer.path` if it is set, otherwise one trained on the training text."""
    return self.tokenizer.make(texts(self.source))

  def start(self, batch: int) -> np.ndarray:
    """Returns the positions of the streams at the start of a run [streams, integers of a position]."""
    return np.zeros((self.streams or batch, self.position_size(training=True)), np.int64)

  def shared(self, tokenizer: Tokenizer | None = None) -> dict[str, Any]:
    """Returns the settings of the task that follow from the data, so that a config states them only once.

    Args:
      tokenizer: of the run, for tasks that read text; None where only sizes are asked for.
    """
    return {}

  def learned(self) -> dict[str, Any]:
    """Returns the settings of its own that it takes from the training data, which the run's config.json keeps."""
    return {}

  def for_model(self, model: Any) -> "Reader":
    """Returns the reader that makes rows for a model."""
    return self

  def position_size(self, training: bool) -> int:
    """Returns the number of integers in a position of a stream."""
    return 2

  def documents(self, source: Source, tokenizer: Tokenizer, seed: int | None, streams: int) -> Documents:
    """Returns the documents of a source, encoded for the packers."""
    return Documents(source, tokenizer, seed, streams)

  def packers(self, documents: Documents, streams: Iterable[int]) -> dict[int, Packer]:
    """Returns the packer of each stream."""
    raise NotImplementedError

  def train(
    self, tokenizer: Tokenizer, batch: int, seed: int, positions: np.ndarray | None = None,
    rows: Sequence[int] | None = None,
  ) -> "Batches":  # fmt: skip
    """Returns endless batches of `batch` rows, from the start or from saved positions.

    Args:
      positions: saved positions [streams, integers of a position].
      rows: the rows of each batch that this process makes, in order; by default all.

    Raises:
      UserError: the streams or the saved positions do not fit the batch; the data was prepared with another tokenizer.
    """
    start = self.start(batch)
    streams, rows = len(start), range(batch) if rows is None else rows
    each = batch // streams
    numbers = sorted({row // each for row in rows}) if each else []
    if batch % streams or len(numbers) * each != len(rows):
      raise UserError(
        f"data.streams: {streams} streams must divide the batch ({batch}), and all rows of a stream must be on one host"
      )
    positions = start if positions is None else positions
    if positions.shape != start.shape:
      raise UserError(
        f"data.streams: the checkpoint has {len(positions)} streams and this run has {streams}; resume with the number "
        "of streams the run started with (by default the batch size)"
      )
    own = len(numbers)
    documents = self.documents(self.source, tokenizer, (seed + 7919 * self.version) % 2**32, streams)
    dataset = _Rows(documents, self.packers(documents, numbers), each, positions)
    workers = max((w for w in range(1, min(self.workers, own) + 1) if own % w == 0), default=0)
    if workers:
      dataset = dataset.mp_prefetch(grain.MultiprocessingOptions(num_workers=workers, per_worker_buffer_size=2 * own))
    dataset = dataset.batch(own, batch_fn=_join)
    dataset = grain.experimental.ThreadPrefetchIterDataset(dataset, prefetch_buffer_size=self.prefetch)
    read, skipped = documents.report
    return Batches(iter(dataset), positions, numbers, len(self.source), read, list(skipped))

  def validate(self, tokenizer: Tokenizer, batch: int, steps: int = 0) -> list[Batch]:
    """Returns the batches of one pass over the validation data, or the first `steps` of them; the last one is padded.

    Each has a key `bytes` [B], the number of UTF-8 bytes of text that the targets of a row cover, for bits per byte.

    Raises:
      UserError: the validation data has no text, or was prepared with another tokenizer.
    """
    documents = self.documents(self.validation, tokenizer, None, 1)
    start = np.zeros((1, self.position_size(training=False)), np.int64)
    rows: list[Batch] = []
    for row in _Rows(documents, self.packers(documents, [0]), 1, start):
      if not row["weights"].any() or len(rows) == steps * batch > 0:
        break
      rows.append(row)
    if not rows:
      raise UserError("data.validation: there is no text to validate on; use a larger validation split")
    padding = {key: np.zeros_like(value) for key, value in rows[0].items() if isinstance(value, np.ndarray)}
    rows += [rows[0] | padding] * (-len(rows) % batch)
    joined = [_join(rows[i : i + batch]) for i in range(0, len(rows), batch)]
    return [{key: b[key] for key in b if key not in ("position", "report")} for b in joined]


@dataclasses.dataclass(eq=False)
class Batches:
  """An iterator over batches that also has the positions of its streams, the skipped records and the padding."""

  iterator: grain.DatasetIterator
  positions: np.ndarray  # of all streams [streams, integers]; only those of this process advance
  streams: list[int]  # those of this process
  records: int  # of the source, of which an epoch reads each once
  read: int  # records
  skipped: list[BadRecord]
  padding: float = 0.0  # fraction of padding in the last batch

  def __iter__(self) -> "Batches":
    return self

  def __next__(self) -> Batch:
    """Returns the next batch.

    Raises:
      UserError: more than 1 % of at least 100 records were skipped.
    """
    batch, self.positions = next(self.iterator), self.positions.copy()
    self.positions[self.streams] = batch.pop("position")
    batch.pop("bytes")
    read, skipped = batch.pop("report")
    self.skipped += skipped if self.read < self.records else []  # each record counts once, in the first epoch
    self.read += read
    self.padding = float(np.mean(batch.get("segments", batch["weights"]) == 0))
    check_skipped_fraction(min(self.read, self.records), self.skipped)
    return batch

  def close(self) -> None:
    """Stops the threads and processes that read ahead."""
    self.iterator.close()


class _Rows(grain.IterDataset):
  """The rows of some streams, with their positions and reports; Grain gives each worker a slice of the streams.

  Args:
    packers: the packer of each stream.
    rows: rows of a batch that each stream makes.
    positions: the position of every stream of the run [streams, integers of a position].
  """

  def __init__(self, documents: Documents, packers: dict[int, Packer], rows: int, positions: np.ndarray):
    super().__init__()
    self.documents, self.packers, self.rows, self.positions = documents, packers, rows, positions

  def set_slice(self, sl: slice, sequential_slice: bool = False) -> None:
    self.packers = dict(list(self.packers.items())[sl])

  def __iter__(self) -> grain.DatasetIterator:
    return _RowIterator(self)


class _RowIterator(grain.DatasetIterator):
  """Cycles through the streams; one element is the rows of one stream for one batch."""

  def __init__(self, rows: _Rows):
    super().__init__()
    self._rows = rows
    self._turn = 0
    self._streams = list(rows.packers)
    self._positions = {s: tuple(map(int, rows.positions[s])) for s in self._streams}
    # They keep the last documents, so that each is tokenized once, and not for each of its rows or lengths.
    caches = {s: functools.lru_cache(getattr(packer, "kept", CACHED_DOCUMENTS)) for s, packer in rows.packers.items()}
    self._readers = {stream: caches[stream](functools.partial(self._read, stream)) for stream in self._streams}
    self._report: tuple[int, list[BadRecord]] = (0, [])  # records read and skipped since the last element
    self._empty = 0  # consecutive documents without text

  def __next__(self) -> dict:
    stream = self._streams[self._turn % len(self._streams)]
    self._turn += 1
    made = []
    for _ in range(self._rows.rows):
      row, self._positions[stream] = self._rows.packers[stream].row(self._readers[stream], self._positions[stream])
      made.append(row)
    element = {key: np.stack([row[key] for row in made]) for key in made[0]}
    element["position"] = np.array([self._positions[stream]], np.int64)
    element["report"], self._report = self._report, (0, [])
    return element

  def _read(self, stream: int, number: int) -> Document:
    document = self._rows.documents.read(stream, number)
    read, skipped = self._report
    if isinstance(document, BadRecord):
      skipped.append(document)
      document = (np.zeros(0, np.int32), 0)
    self._report = (read + 1, skipped)
    self._empty = 0 if len(document[0]) else self._empty + 1
    if self._empty >= max(MIN_RECORDS, len(self._rows.documents.source)):
      last = f"; the last: {skipped[-1].where} {skipped[-1].why}" if skipped else ""
      raise UserError(f"data: no text in {self._empty:,} consecutive records{last}")
    return document

  def get_state(self) -> dict:
    return {"turn": self._turn, "positions": dict(self._positions)}

  def set_state(self, state: dict) -> None:
    self._turn, self._positions = state["turn"], dict(state["positions"])


def _join(elements: list[dict]) -> dict:
  """Concatenates the elements of all streams into one batch."""
  arrays = [key for key in elements[0] if key != "report"]
  joined = {key: np.concatenate([np.atleast_1d(e[key]) for e in elements]) for key in arrays}
  read, skipped = zip(*(e["report"] for e in elements), strict=True)
  joined["report"] = sum(read), [record for records in skipped for record in records]
  return joined
