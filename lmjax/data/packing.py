"""Packers of text: rows of a fixed length out of documents of any length.

Inputs are `[start] + ids` and targets `ids + [end]`, so every token is predicted exactly once.
"""

from collections.abc import Iterable, Sequence

import numpy as np

from lmjax.data.buckets import Buckets
from lmjax.data.concatenate import Span, fill, span_of
from lmjax.data.first_fit import GROUP_ROWS, FirstFit
from lmjax.data.packer import Document, Position, ReadDocument, Row


class FirstFitText(FirstFit):
  """Documents by first fit: only documents longer than a row are split, and rows may end in padding."""

  def __init__(self, length: int):
    super().__init__((length,), max_tokens=GROUP_ROWS * length)

  def items(self, document: Document) -> Iterable[tuple[Sequence[int], Span]]:
    ids, size = document
    for start in range(0, len(ids) - 1, self.length):
      end = min(start + self.length, len(ids) - 1)
      yield (end - start,), span_of(ids, size, start, end)

  def fill(self, items: list[Span]) -> Row:
    return fill(items, self.length)


class TextBuckets(Buckets):
  """Text in rows of a few lengths, see `Buckets`."""

  def tokens(self, content: np.ndarray) -> int:
    return len(content) - 1

  def fill(self, content: np.ndarray, size: float, length: int) -> Row:
    return fill([span_of(content, size, 0, min(length, len(content) - 1))] if len(content) else [], length)


class Windows:
  """Windows of all documents concatenated, without boundaries between them.

  With a seed, the start of each window is random, a pure function of (seed, stream, row); without one, the windows are
  consecutive. Position: the row's number.
  """

  def __init__(self, ids: np.ndarray, size: int, length: int, seed: int | None, stream: int):
    self.ids, self.length, self.seed, self.stream = ids, length, seed, stream
    self._bytes_per_token = size / len(ids)

  def row(self, read: ReadDocument, position: Position) -> tuple[Row, Position]:
    (number,) = position
    start = number * self.length
    if self.seed is not None:
      rng = np.random.default_rng([self.seed, self.stream, number])
      start = int(rng.integers(0, max(len(self.ids) - self.length, 1)))
    window = np.zeros(self.length + 1, np.int32)
    ids = self.ids[start : start + self.length + 1]
    window[: len(ids)] = ids
    weights = (np.arange(self.length) < len(ids) - 1).astype(np.float32)
    row: Row = {"inputs": window[:-1], "targets": window[1:], "weights": weights}
    return row | {"bytes": np.float64(weights.sum() * self._bytes_per_token)}, (number + 1,)
