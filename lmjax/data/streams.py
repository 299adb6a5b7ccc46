"""Streams: which documents the rows of a batch are made of, in an order that depends on the seed alone.

Stream s of S reads documents s, s + S, s + 2S, ... of an endless sequence, which is shuffled anew in every epoch. Each
part of a mixture is read in that way.
"""

import dataclasses
import functools
from collections.abc import Sequence

import grain
import numpy as np

from lmjax.data.packer import Document
from lmjax.data.sources.base import BadRecord, Encoded, Source
from lmjax.data.tokenizers.base import Tokenizer, fingerprint
from lmjax.utils.errors import UserError

PERIOD = 10_000  # weights are rounded to multiples of 1 / PERIOD of their sum


@dataclasses.dataclass(frozen=True)
class Part:
  """A source and its weight in a mixture, relative to those of the other parts."""

  source: Source
  weight: float = 1.0


@dataclasses.dataclass(frozen=True)
class Mixture:
  """Several sources, mixed by weight; when a source is exhausted, it starts again in another order.

  Every stream takes documents in exact proportion to the weights over each period of a fixed, even schedule. By
  index, as in the single pass over validation data, a mixture is the concatenation of its sources.
  """

  parts: dict[str, Part]

  def __post_init__(self):
    if not self.parts or any(not part.weight > 0 for part in self.parts.values()):
      raise ValueError("a mixture needs at least one part, and all weights must be above 0")
    if len(self.counts) and min(self.counts) == 0:
      name = list(self.parts)[int(np.argmin(self.counts))]
      raise ValueError(f"the weight of {name!r} is less than 1/{PERIOD:,} of the sum of the weights")

  @functools.cached_property
  def counts(self) -> np.ndarray:
    """How often each part occurs in a period [parts]."""
    return proportions([part.weight for part in self.parts.values()])

  @functools.cached_property
  def _occurred(self) -> np.ndarray:
    """How often each part occurs before each index of a period [period + 1, parts]."""
    one_hot = np.eye(len(self.counts), dtype=np.int64)[schedule(self.counts)]
    return np.concatenate([np.zeros((1, len(self.counts)), np.int64), np.cumsum(one_hot, axis=0)])

  @functools.cached_property
  def _ends(self) -> np.ndarray:
    return np.cumsum([len(part.source) for part in self.parts.values()])

  def draw(self, stream: int, number: int) -> tuple[int, int]:
    """Returns the part of a stream's document `number`, by index, and how many of its documents precede it."""
    occurred = self._occurred
    period = len(occurred) - 1
    offset = stream * (period // 7 + 1) % period  # so that the streams do not all read the same part at a time
    periods, place = divmod(offset + number, period)
    part = int(np.argmax(occurred[place + 1] - occurred[place]))
    return part, int(periods * occurred[-1][part] + occurred[place][part] - occurred[offset][part])

  def __len__(self) -> int:
    return int(self._ends[-1])

  def __getitem__(self, index: int) -> str | Encoded | BadRecord:
    part = int(np.searchsorted(self._ends, index, side="right"))
    before = int(self._ends[part - 1]) if part else 0
    return list(self.parts.values())[part].source[index - before]


class Documents:
  """The encoded documents of a source in the order in which streams read them; without a seed, one pass of one stream.

  A subclass whose documents are more than ids overrides `encode_text`, and names what else it needs in `requires`.
  """

  requires = ""

  def __init__(self, source: Source, tokenizer: Tokenizer, seed: int | None, streams: int):
    self.source, self.tokenizer, self.seed, self.streams = source, tokenizer, seed, streams
    self.report: tuple[int, list[BadRecord]] = (0, [])  # records read and skipped before the first batch

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

  def read(self, stream: int, number: int) -> Document | BadRecord:
    """Returns document `number` of a stream; raises IndexError after the last one of a single pass."""
    if self.seed is None:
      if number >= len(self.source):
        raise IndexError(number)
      return self.encode(self.source[number])
    part = 0
    if isinstance(self.source, Mixture):
      part, number = self.source.draw(stream, number)
    return self._endless[part][stream + self.streams * number]

  def encode(self, document: str | Encoded | BadRecord) -> Document | BadRecord:
    """Returns the content of a document for the packers and the number of UTF-8 bytes of its text.

    Raises:
      UserError: the ids were prepared with another tokenizer, or ids alone are not enough (see `requires`).
    """
    if isinstance(document, BadRecord):
      return document
    if not isinstance(document, Encoded):
      return self.encode_text(document)
    if self.requires:
      raise UserError(f"data: prepared ids are not enough, the objective needs {self.requires}; use a source of text")
    if document.tokenizer != self._fingerprint:
      raise UserError(
        f"data: the prepared ids come from another tokenizer ({document.tokenizer}) than the run's "
        f"({self._fingerprint}): set config.data.tokenizer.path to the prepared folder, or prepare the text again"
      )
    return self._enclose(document.ids), document.bytes

  def encode_text(self, document: str) -> Document:
    """Returns the document of a string for the packers: by default its ids [T] from the start to the end token."""
    ids = self.tokenizer.encode(document) if document.strip() else []
    return self._enclose(ids), len(document.encode("utf-8"))

  def _enclose(self, ids: Sequence[int]) -> np.ndarray:
    """Returns the ids between start and end; empty if there are none."""
    enclosed = np.zeros(len(ids) + 2 if len(ids) else 0, np.int32)
    if len(ids):
      enclosed[0], enclosed[1:-1], enclosed[-1] = self.tokenizer.start, ids, self.tokenizer.end
    return enclosed

  def check_tokenizer(self) -> None:
    """Raises UserError before training starts if a source was prepared with another tokenizer."""
    parts = self.source.parts.values() if isinstance(self.source, Mixture) else ()
    for first in [part.source[0] for part in parts] or [self.source[0]]:
      if isinstance(first, Encoded):
        self.encode(first)

  @functools.cached_property
  def concatenated(self) -> tuple[np.ndarray, int]:
    """The ids of all documents [T], without start and end tokens, and the number of UTF-8 bytes of their text."""
    encoded = [self.encode(self.source[i]) for i in range(len(self.source))]
    skipped = [document for document in encoded if isinstance(document, BadRecord)]
    documents = [document for document in encoded if not isinstance(document, BadRecord)]
    ids = np.concatenate([ids[1:-1] for ids, _ in documents]) if documents else np.zeros(0, np.int32)
    if len(ids) < 2:
      raise UserError("data: the source contains no text; check config.data.source")
    self.report = (len(encoded), skipped)
    return ids, sum(size for _, size in documents)


def proportions(weights: list[float]) -> np.ndarray:
  """Returns the smallest integers in proportion to the weights, rounded to multiples of 1 / PERIOD of their sum."""
  scaled = np.array(weights) / np.sum(weights) * PERIOD
  counts = np.floor(scaled + 1e-9).astype(np.int64)
  for i in np.argsort(counts - scaled, kind="stable")[: PERIOD - counts.sum()]:  # largest remainders first
    counts[i] += 1
  return counts // np.gcd.reduce(counts)


def schedule(counts: np.ndarray) -> np.ndarray:
  """Returns a sequence of indices in which i occurs `counts[i]` times, evenly spaced (smooth weighted round robin)."""
  credit = np.zeros(len(counts))
  order = np.zeros(int(counts.sum()), np.int64)
  for place in range(len(order)):
    credit += counts
    order[place] = np.argmax(credit)
    credit[order[place]] -= len(order)
  return order
