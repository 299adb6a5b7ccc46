"""From sources to batches: streams of packed rows, made ahead by Grain, whose order depends on nothing but the seed.

Stream s of S reads documents s, s + S, s + 2S, ... of an endless sequence in which every epoch is a new shuffle. A
batch has as many rows from each stream. Its position, two integers a stream, travels with every batch, so that what
was prefetched and not used is not lost, and a run resumes with another number of workers or hosts.
"""

import dataclasses
import functools
import sys
from collections.abc import Callable, Iterator
from typing import Protocol

import grain
import jax
import numpy as np

from lmjax.data import packing
from lmjax.data.batch import Batch
from lmjax.data.sources import Bad
from lmjax.data.tokenizers import Settings, Tokenizer
from lmjax.utils.errors import UserError

PATIENCE = 100  # records read before the share of bad ones is judged
TOLERANCE = 0.01  # share of bad records that stops a run


class Source(Protocol):
  """Texts by number; a record that cannot be read is a Bad."""

  def __len__(self) -> int: ...

  def __getitem__(self, index: int) -> str | Bad: ...


@dataclasses.dataclass(frozen=True)
class Text:
  """Text as a language model reads it.

  packing: `concatenate` puts whole documents one after the other and keeps them apart by segments; `windows` draws
  windows of one long text, in which documents run on into each other (for small corpora: it is tokenized at the start).
  streams: 0 is one for each row of the batch, else a divisor of it. workers: processes that read and tokenize, rounded
  down to a divisor of the streams; 0 reads in a thread.
  """

  source: Source
  validation: Source
  length: int
  tokenizer: Settings = Settings()
  packing: str = "concatenate"
  streams: int = 0
  workers: int = 0
  ahead: int = 4  # batches made in advance

  def __post_init__(self):
    if self.packing not in ("concatenate", "windows"):
      raise ValueError(f"packing is concatenate or windows, not {self.packing!r}")
    if self.length < 1:
      raise ValueError(f"length is at least 1 token, not {self.length}")
    if min(self.streams, self.workers, self.ahead) < 0:
      raise ValueError("streams, workers and ahead are at least 0")

  def make_tokenizer(self) -> Tokenizer:
    """Returns the tokenizer, trained on the training texts unless it has a path."""
    texts = (self.source[i] for i in range(len(self.source)))
    return self.tokenizer.make(text for text in texts if isinstance(text, str))

  def train(self, tokenizer: Tokenizer, batch: int, seed: int, positions: np.ndarray | None = None) -> "Batches":
    """Returns endless batches of `batch` rows, from the start or from saved positions [streams, 2].

    Raises:
      UserError: the streams, or the saved positions, do not fit the batch.
    """
    streams = self.streams or batch
    if batch % streams or streams % jax.process_count():
      raise UserError(
        f"data.streams: {streams} streams must divide the batch ({batch}) and be a multiple of the hosts "
        f"({jax.process_count()})"
      )
    if positions is None:
      positions = np.zeros((streams, 2), np.int64)
    if len(positions) != streams:
      raise UserError(
        f"data.streams: the checkpoint holds {len(positions)} streams and this run has {streams}; a run resumes with "
        "the number it began with (by default the batch)"
      )
    own = streams // jax.process_count()
    numbers = list(range(own * jax.process_index(), own * (jax.process_index() + 1)))
    rows = _Rows(self, self.source, tokenizer, seed, numbers, streams, batch // streams, positions)
    workers = max((w for w in range(1, self.workers + 1) if own % w == 0), default=0)
    if workers:
      rows = rows.mp_prefetch(grain.MultiprocessingOptions(num_workers=workers, per_worker_buffer_size=2 * own))
    dataset = rows.batch(own, batch_fn=_join)
    dataset = grain.experimental.ThreadPrefetchIterDataset(dataset, prefetch_buffer_size=self.ahead)
    return Batches(iter(dataset), positions)

  def validate(self, tokenizer: Tokenizer, batch: int, steps: int = 0) -> list[Batch]:
    """Returns the batches of one pass over the validation text, padded to whole batches; the first `steps` if given.

    Each carries `bytes`, the UTF-8 bytes of the text its targets stand for, which a task does not see.
    """
    rows = _Rows(self, self.validation, tokenizer, None, [0], 1, 1, np.zeros((1, 2), np.int64))
    found: list[Batch] = []
    wanted = steps * batch if steps else sys.maxsize
    for row in rows:
      if not row["weights"].any() or len(found) == wanted:
        break
      found.append(row)
    if not found:
      raise UserError("data.validation: no text to validate on; give a larger validation part")
    padding = {key: np.zeros_like(value) for key, value in found[0].items() if isinstance(value, np.ndarray)}
    found += [found[0] | padding] * (-len(found) % batch)
    joined = [_join(found[i : i + batch]) for i in range(0, len(found), batch)]
    return [{key: b[key] for key in b if key not in ("position", "report")} for b in joined]


class Batches:
  """An iterator of batches that knows where it stands and what it skipped."""

  def __init__(self, iterator: Iterator, positions: np.ndarray):
    self._iterator = iterator
    self.positions = positions  # after the last batch that was taken
    self.read = 0
    self.bad: list[Bad] = []

  def __iter__(self) -> "Batches":
    return self

  def __next__(self) -> Batch:
    """Returns the next batch, without its bookkeeping.

    Raises:
      UserError: more than 1 % of at least 100 records were bad.
    """
    batch = next(self._iterator)
    self.positions = batch.pop("position")
    batch.pop("bytes")
    read, bad = batch.pop("report")
    self.read += read
    self.bad += bad
    if self.read >= PATIENCE and len(self.bad) > TOLERANCE * self.read:
      raise UserError(
        f"data: {len(self.bad)} of {self.read} records are bad, more than 1 %; the last: "
        f"{self.bad[-1].where} {self.bad[-1].why}"
      )
    return batch

  def close(self) -> None:
    """Stops the threads and processes that read ahead."""
    self._iterator.close()


class _Rows(grain.IterDataset):
  """The rows of some streams, each an element with its position and report; Grain gives each worker a slice of them."""

  def __init__(self, text: Text, source, tokenizer, seed, numbers, streams, rows, positions):
    super().__init__()
    self.text, self.source, self.tokenizer, self.seed = text, source, tokenizer, seed
    self.numbers, self.streams, self.rows, self.positions = numbers, streams, rows, positions

  def set_slice(self, sl: slice, sequential_slice: bool = False) -> None:
    self.numbers = self.numbers[sl]

  def __iter__(self) -> grain.DatasetIterator:
    return _RowIterator(self)

  @functools.cached_property
  def documents(self) -> Callable[[int], tuple[np.ndarray, int] | Bad]:
    """The endless sequence of (ids, bytes) or Bad; unseeded, a single pass that ends with IndexError."""
    documents = grain.MapDataset.source(self.source).map(self._tokenize)
    if self.seed is not None:
      return documents.seed(self.seed).shuffle().repeat().__getitem__

    def once(number):
      if number >= len(self.source):
        raise IndexError(number)
      return documents[number]

    return once

  @functools.cached_property
  def whole(self) -> tuple[np.ndarray, float, tuple[int, list[Bad]]]:
    """All ids of the source as one text, its bytes per token, and the report."""
    found = [self._tokenize(self.source[i]) for i in range(len(self.source))]
    good = [f for f in found if not isinstance(f, Bad)]
    ids = np.concatenate([f[0][1:-1] for f in good]) if good else np.zeros(0, np.int32)
    if len(ids) < 2:
      raise UserError("data: the source holds no text")
    return ids, sum(f[1] for f in good) / len(ids), (len(found), [f for f in found if isinstance(f, Bad)])

  def _tokenize(self, text: str | Bad) -> tuple[np.ndarray, int] | Bad:
    if isinstance(text, Bad):
      return text
    ids = self.tokenizer.encode(text) if text.strip() else []
    whole = [self.tokenizer.start, *ids, self.tokenizer.end] if ids else []
    return np.array(whole, np.int32), len(text.encode("utf-8"))


class _RowIterator(grain.DatasetIterator):
  """Goes round the streams; one element is the rows of one stream for one batch."""

  def __init__(self, rows: _Rows):
    super().__init__()
    self._rows = rows
    self._turn = 0
    self._positions = {s: tuple(map(int, rows.positions[s])) for s in rows.numbers}
    self._known: dict[int, dict] = {}  # a long document is tokenized once, not once a row
    self._report: tuple[int, list[Bad]] = (0, [])

  def __next__(self) -> dict:
    stream = self._rows.numbers[self._turn % len(self._rows.numbers)]
    self._turn += 1
    made = [self._row(stream) for _ in range(self._rows.rows)]
    element = {key: np.stack([row[key] for row in made]) for key in made[0]}
    element["position"] = np.array([self._positions[stream]], np.int64)
    element["report"], self._report = self._report, (0, [])
    return element

  def _row(self, stream: int) -> packing.Row:
    rows, length = self._rows, self._rows.text.length
    position = self._positions[stream]
    if rows.text.packing == "windows":
      ids, density, report = rows.whole
      if not self._turn > len(rows.numbers):
        self._report = report if stream == rows.numbers[0] and position == (0, 0) else (0, [])
      if rows.seed is None:
        row = packing.crop(ids, position[0] * length, length)
      else:
        row = packing.random_window(ids, rows.seed, stream, position[0], length)
      self._positions[stream] = (position[0] + 1, 0)
      return row | {"bytes": np.float64(row["weights"].sum() * density)}
    row, self._positions[stream], taken = packing.concatenate(functools.partial(self._read, stream), position, length)
    return row | {"bytes": np.float64(sum(share * self._read(stream, k, size=True) for k, share in taken.items()))}

  def _read(self, stream: int, number: int, size: bool = False):
    """Returns the ids of document `number` of a stream, or its bytes."""
    known = self._known.setdefault(stream, {})
    if number not in known:
      found = self._rows.documents(stream + self._rows.streams * number)
      read, bad = self._report
      if isinstance(found, Bad):
        self._report = (read + 1, [*bad, found])
        found = (np.zeros(0, np.int32), 0)
      else:
        self._report = (read + 1, bad)
      for old in [k for k in known if k < number - 64]:
        del known[old]
      known[number] = found
    return known[number][1] if size else known[number][0]

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
