"""From sources to batches: documents are tokenized, packed into rows and joined, ahead of the step, by Grain."""

import dataclasses
import functools
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import grain
import numpy as np

from lmjax.data.batch import Batch
from lmjax.data.packing import Document, Packer
from lmjax.data.sources.base import PATIENCE, BadRecord, Source, check_skipped_fraction, texts
from lmjax.data.streams import Documents
from lmjax.data.tokenizers.base import Tokenizer
from lmjax.data.tokenizers.registry import TokenizerConfig
from lmjax.utils.errors import UserError

KEPT = 4  # documents a stream remembers


@dataclasses.dataclass(frozen=True)
class Reader:
  """What every kind of data shares: sources, a tokenizer, streams, and rows made ahead of the step.

  streams: 0 is one for each row of the batch, else a divisor of it. workers: processes that read and tokenize, rounded
  down to a divisor of the streams; 0 reads in a thread.
  version: raise it to go on with other data; the order then starts anew.
  """

  source: Source
  validation: Source
  length: int
  tokenizer: TokenizerConfig = TokenizerConfig()
  streams: int = 0
  workers: int = 0
  ahead: int = 4  # batches made in advance
  version: int = 0

  def __post_init__(self):
    if self.length < 1:
      raise ValueError(f"length is at least 1 token, not {self.length}")
    if min(self.streams, self.workers, self.ahead, self.version) < 0:
      raise ValueError("streams, workers, ahead and version are at least 0")

  def make_tokenizer(self) -> Tokenizer:
    """Returns the tokenizer, trained on the training texts unless it has a path."""
    return self.tokenizer.make(texts(self.source))

  def start(self, batch: int) -> np.ndarray:
    """Returns the positions of a run's streams at its start [streams, integers of a position]."""
    return np.zeros((self.streams or batch, self.integers(training=True)), np.int64)

  def shared(self) -> dict[str, Any]:
    """Returns what a task must know of the data, so that the config says it once."""
    return {}

  def integers(self, training: bool) -> int:
    """Returns how many integers a position has."""
    return 2

  def documents(self, source: Source, tokenizer: Tokenizer, seed: int | None, streams: int) -> Documents:
    """Returns the documents of a source as the packers read them."""
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
      rows: those of each batch to make, in order; by default all.

    Raises:
      UserError: the streams, or the saved positions, do not fit the batch; prepared data has another tokenizer.
    """
    start = self.start(batch)
    streams, rows = len(start), range(batch) if rows is None else rows
    each = batch // streams
    numbers = sorted({row // each for row in rows}) if each else []
    if batch % streams or len(numbers) * each != len(rows):
      raise UserError(
        f"data.streams: {streams} streams must divide the batch ({batch}), and each give its rows to one host"
      )
    positions = start if positions is None else positions
    if positions.shape != start.shape:
      raise UserError(
        f"data.streams: the checkpoint holds {len(positions)} streams and this run has {streams}; a run resumes with "
        "the number it began with (by default the batch)"
      )
    own = len(numbers)
    documents = self.documents(self.source, tokenizer, (seed + 7919 * self.version) % 2**32, streams)
    made = _Rows(documents, self.packers(documents, numbers), each, positions)
    workers = max((w for w in range(1, self.workers + 1) if own % w == 0), default=0)
    if workers:
      made = made.mp_prefetch(grain.MultiprocessingOptions(num_workers=workers, per_worker_buffer_size=2 * own))
    dataset = made.batch(own, batch_fn=_join)
    dataset = grain.experimental.ThreadPrefetchIterDataset(dataset, prefetch_buffer_size=self.ahead)
    return Batches(iter(dataset), positions, numbers, *documents.report)

  def validate(self, tokenizer: Tokenizer, batch: int, steps: int = 0) -> list[Batch]:
    """Returns the batches of one pass over the validation text, padded to whole batches; the first `steps` if given.

    Each carries `bytes`, the UTF-8 bytes of the text its targets stand for, which a task does not see.
    """
    documents = self.documents(self.validation, tokenizer, None, 1)
    start = np.zeros((1, self.integers(training=False)), np.int64)
    found: list[Batch] = []
    for row in _Rows(documents, self.packers(documents, [0]), 1, start):
      if not row["weights"].any() or len(found) == steps * batch > 0:
        break
      found.append(row)
    if not found:
      raise UserError("data.validation: no text to validate on; give a larger validation part")
    padding = {key: np.zeros_like(value) for key, value in found[0].items() if isinstance(value, np.ndarray)}
    found += [found[0] | padding] * (-len(found) % batch)
    joined = [_join(found[i : i + batch]) for i in range(0, len(found), batch)]
    return [{key: b[key] for key in b if key not in ("position", "report")} for b in joined]


class Batches:
  """An iterator of batches that knows where it stands, what it skipped and how much of it is padding."""

  def __init__(
    self, iterator: Iterator, positions: np.ndarray, streams: list[int], read: int, bad: Sequence[BadRecord]
  ):
    self._iterator = iterator
    self.streams = streams  # those that give the rows here
    self.positions = positions  # of all streams; true of those here, after the last batch that was taken
    self.read = read
    self.bad = list(bad)
    self.padding = 0.0  # share of the last batch

  def __iter__(self) -> "Batches":
    return self

  def __next__(self) -> Batch:
    """Returns the next batch, without its bookkeeping.

    Raises:
      UserError: more than 1 % of at least 100 records were bad.
    """
    batch = next(self._iterator)
    self.positions = self.positions.copy()
    self.positions[self.streams] = batch.pop("position")
    batch.pop("bytes")
    read, bad = batch.pop("report")
    self.read += read
    self.bad += bad
    self.padding = float(np.mean(batch.get("segments", batch["weights"]) == 0))
    check_skipped_fraction(self.read, self.bad)
    return batch

  def close(self) -> None:
    """Stops the threads and processes that read ahead."""
    self._iterator.close()


class _Rows(grain.IterDataset):
  """The rows of some streams, each an element with its position and report; Grain gives each worker a slice of them.

  Args:
    packers: those of the streams to go round, by stream.
    rows: how many rows of a batch each stream makes.
    positions: where each stream of the run stands [streams, ...].
  """

  def __init__(self, documents: Documents, packers: dict[int, Packer], rows: int, positions: np.ndarray):
    super().__init__()
    self.documents, self.packers, self.rows, self.positions = documents, packers, rows, positions

  def set_slice(self, sl: slice, sequential_slice: bool = False) -> None:
    self.packers = dict(list(self.packers.items())[sl])

  def __iter__(self) -> grain.DatasetIterator:
    return _RowIterator(self)


class _RowIterator(grain.DatasetIterator):
  """Goes round the streams; one element is the rows of one stream for one batch."""

  def __init__(self, rows: _Rows):
    super().__init__()
    self._rows = rows
    self._turn = 0
    self._streams = list(rows.packers)
    self._positions = {s: tuple(map(int, rows.positions[s])) for s in self._streams}
    # The last documents of each stream: a long one is tokenized once, not once a row.
    self._known: dict[int, dict[int, Document]] = {stream: {} for stream in self._streams}
    self._announce: tuple[int, list[BadRecord]] = (0, [])
    self._empty = 0  # documents without text since the last one with some

  def __next__(self) -> dict:
    stream = self._streams[self._turn % len(self._streams)]
    self._turn += 1
    read, made = functools.partial(self._read, stream), []
    for _ in range(self._rows.rows):
      row, self._positions[stream] = self._rows.packers[stream].row(read, self._positions[stream])
      made.append(row)
    element = {key: np.stack([row[key] for row in made]) for key in made[0]}
    element["position"] = np.array([self._positions[stream]], np.int64)
    element["report"], self._announce = self._announce, (0, [])
    return element

  def _read(self, stream: int, number: int) -> Document:
    known = self._known[stream]
    if number in known:
      known[number] = known.pop(number)  # the last to be forgotten
      return known[number]
    found = self._rows.documents.read(stream, number)
    read, bad = self._announce
    if isinstance(found, BadRecord):
      bad.append(found)
      found = (np.zeros(0, np.int32), 0)
    self._announce = (read + 1, bad)
    self._empty = 0 if len(found[0]) else self._empty + 1
    if self._empty >= max(PATIENCE, len(self._rows.documents.source)):
      last = f"; the last: {bad[-1].where} {bad[-1].why}" if bad else ""
      raise UserError(f"data: no text in {self._empty:,} records one after the other{last}")
    if len(known) == KEPT:
      del known[next(iter(known))]
    known[number] = found
    return found

  def get_state(self) -> dict:
    return {"turn": self._turn, "positions": dict(self._positions)}

  def set_state(self, state: dict) -> None:
    self._turn, self._positions = state["turn"], dict(state["positions"])


def _join(elements: list[dict]) -> dict:
  """Joins the elements of all streams into one batch."""
  arrays = [key for key in elements[0] if key != "report"]
  joined = {key: np.concatenate([np.atleast_1d(e[key]) for e in elements]) for key in arrays}
  joined["report"] = (
    sum(e["report"][0] for e in elements),
    [bad for e in elements for bad in e["report"][1]],
  )
  return joined
