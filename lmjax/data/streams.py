"""Streams: who reads which document when, so that the order depends on nothing but the seed.

Stream s of S reads documents s, s + S, s + 2S, ... of an endless sequence in which every epoch is a new shuffle; of a
mixture, it goes through every part in that way.
"""

import dataclasses
import functools

import grain
import numpy as np

from lmjax.data import packing
from lmjax.data.sources.base import BadRecord, Encoded, Source
from lmjax.data.tokenizers.base import Tokenizer, fingerprint
from lmjax.utils.errors import UserError

PERIOD = 10_000  # weights are rounded to this many parts


@dataclasses.dataclass(frozen=True)
class Part:
  """A source and its share of the documents, relative to the others'."""

  source: Source
  weight: float = 1.0


@dataclasses.dataclass(frozen=True)
class Mixture:
  """Several sources, drawn from by weight; each starts anew, in another order, when it is used up.

  Every stream takes documents in the exact proportion of the weights over each period of a fixed, even schedule. Read
  by number, as in a single pass, a mixture is one source after the other.
  """

  parts: dict[str, Part]

  def __post_init__(self):
    if not self.parts or any(not part.weight > 0 for part in self.parts.values()):
      raise ValueError("a mixture has parts, each with a weight above 0")
    if len(self.counts) and min(self.counts) == 0:
      name = list(self.parts)[int(np.argmin(self.counts))]
      raise ValueError(f"the weight of {name!r} is less than 1 in {PERIOD:,} of the whole")

  @functools.cached_property
  def counts(self) -> np.ndarray:
    """How often each part is drawn in a period."""
    return proportions([part.weight for part in self.parts.values()])

  @functools.cached_property
  def _drawn(self) -> np.ndarray:
    """How often each part was drawn before each draw of a period [period + 1, parts]."""
    draws = np.eye(len(self.counts), dtype=np.int64)[schedule(self.counts)]
    return np.concatenate([np.zeros((1, len(self.counts)), np.int64), np.cumsum(draws, axis=0)])

  @functools.cached_property
  def _ends(self) -> np.ndarray:
    return np.cumsum([len(part.source) for part in self.parts.values()])

  def draw(self, stream: int, number: int) -> tuple[int, int]:
    """Returns the part that gives a stream's document `number`, and how many of that part the stream had before it."""
    drawn = self._drawn
    period = len(drawn) - 1
    offset = stream * (period // 7 + 1) % period  # so that the streams do not all draw from the same part at a time
    turns, place = divmod(offset + number, period)
    part = int(np.argmax(drawn[place + 1] - drawn[place]))
    return part, int(turns * drawn[-1][part] + drawn[place][part] - drawn[offset][part])

  def __len__(self) -> int:
    return int(self._ends[-1])

  def __getitem__(self, index: int) -> str | Encoded | BadRecord:
    part = int(np.searchsorted(self._ends, index, side="right"))
    before = int(self._ends[part - 1]) if part else 0
    return list(self.parts.values())[part].source[index - before]


class Documents:
  """The documents of a source as ids, in the order the streams read them; unseeded, one pass of one stream."""

  def __init__(self, source: Source, tokenizer: Tokenizer, seed: int | None, streams: int):
    self.source, self.tokenizer, self.seed, self.streams = source, tokenizer, seed, streams
    self.report: tuple[int, list[BadRecord]] = (0, [])  # of what was read at the start

  @functools.cached_property
  def _endless(self) -> list[grain.MapDataset]:
    """Each part of the source, shuffled anew in every epoch."""
    parts = [p.source for p in self.source.parts.values()] if isinstance(self.source, Mixture) else [self.source]
    seeds = [(self.seed + 104_729 * i) % 2**32 for i in range(len(parts))]
    return [
      grain.MapDataset.source(part).map(self.encode).seed(seed).shuffle().repeat()
      for part, seed in zip(parts, seeds, strict=True)
    ]

  @functools.cached_property
  def _fingerprint(self) -> str:
    return fingerprint(self.tokenizer)

  def read(self, stream: int, number: int) -> packing.Document | BadRecord:
    """Returns document `number` of a stream; raises IndexError behind the last one of a single pass."""
    if self.seed is None:
      if number >= len(self.source):
        raise IndexError(number)
      return self.encode(self.source[number])
    part = 0
    if isinstance(self.source, Mixture):
      part, number = self.source.draw(stream, number)
    return self._endless[part][stream + self.streams * number]

  def encode(self, document: str | Encoded | BadRecord) -> packing.Document | BadRecord:
    """Returns a document's ids, with start and end around them, and the bytes of its text.

    Raises:
      UserError: the ids were prepared with another tokenizer.
    """
    if isinstance(document, BadRecord):
      return document
    if isinstance(document, Encoded):
      if document.tokenizer != self._fingerprint:
        raise UserError(
          f"data: the prepared ids come from another tokenizer ({document.tokenizer}) than the run's "
          f"({self._fingerprint}): set config.data.tokenizer.path to the prepared folder, or prepare the text again"
        )
      ids, size = document.ids, document.bytes
    else:
      ids = self.tokenizer.encode(document) if document.strip() else []
      size = len(document.encode("utf-8"))
    whole = np.zeros(len(ids) + 2 if len(ids) else 0, np.int32)
    if len(ids):
      whole[0], whole[1:-1], whole[-1] = self.tokenizer.start, ids, self.tokenizer.end
    return whole, size

  def refuse_other_tokenizers(self) -> None:
    """Raises UserError if a source was prepared with another tokenizer, before anything starts."""
    parts = self.source.parts.values() if isinstance(self.source, Mixture) else ()
    for first in [part.source[0] for part in parts] or [self.source[0]]:
      if isinstance(first, Encoded):
        self.encode(first)

  @functools.cached_property
  def whole(self) -> tuple[np.ndarray, int]:
    """All ids of the source as one text, and its bytes."""
    found = [self.encode(self.source[i]) for i in range(len(self.source))]
    good = [f for f in found if not isinstance(f, BadRecord)]
    ids = np.concatenate([f[0][1:-1] for f in good]) if good else np.zeros(0, np.int32)
    if len(ids) < 2:
      raise UserError("data: the source holds no text")
    self.report = (len(found), [f for f in found if isinstance(f, BadRecord)])
    return ids, sum(f[1] for f in good)


def proportions(weights: list[float]) -> np.ndarray:
  """Returns the smallest whole numbers in the proportion of the weights, to a ten-thousandth of the whole."""
  shares = np.array(weights) / np.sum(weights) * PERIOD
  counts = np.floor(shares + 1e-9).astype(np.int64)
  for i in np.argsort(counts - shares, kind="stable")[: PERIOD - counts.sum()]:  # largest remainders first
    counts[i] += 1
  return counts // np.gcd.reduce(counts)


def schedule(counts: np.ndarray) -> np.ndarray:
  """Returns a period in which thing i comes `counts[i]` times, as evenly spread as can be."""
  left = np.zeros(len(counts))
  order = np.zeros(int(counts.sum()), np.int64)
  for turn in range(len(order)):
    left += counts
    order[turn] = np.argmax(left)
    left[order[turn]] -= len(order)
  return order
