"""Mixtures of sources: which of them each stream reads next."""

import dataclasses
import functools

import numpy as np

from lmjax.data.schedule import PERIOD, proportions, schedule
from lmjax.data.sources.base import BadRecord, Encoded, Source


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
    return np.cumsum([len(source) for source in self.sources])

  @property
  def sources(self) -> list[Source]:
    """The sources, in the order of the parts."""
    return [part.source for part in self.parts.values()]

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
    return self.sources[part][index - before]
