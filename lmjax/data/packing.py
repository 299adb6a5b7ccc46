"""Packers of text: rows of a fixed length out of documents of any length.

Inputs are `[start] + ids` and targets `ids + [end]`, so every token is predicted exactly once.
"""

from collections.abc import Iterable, Sequence

import numpy as np

from lmjax.data.buckets import Buckets
from lmjax.data.first_fit import GROUP_ROWS, FirstFit
from lmjax.data.packer import Document, Position, ReadDocument, Row

Span = tuple[np.ndarray, int, int, float]  # ids, index of the first input, index after the last one, bytes


class Concatenate:
  """Documents one after the other; a document that does not fit into the rest of a row continues in the next row.

  Position: the document to read next, and how many of its targets have been used.
  """

  def __init__(self, length: int):
    self.length = length

  def row(self, read: ReadDocument, position: Position) -> tuple[Row, Position]:
    spans, filled, (document, used) = [], 0, position
    while filled < self.length:
      try:
        ids, size = read(document)
      except IndexError:
        break
      targets = max(len(ids) - 1, 0)
      end = min(used + self.length - filled, targets)
      if end > used:
        spans.append(_span(ids, size, used, end))
        filled, used = filled + end - used, end
      if used >= targets:  # true at once for a skipped document
        document, used = document + 1, 0
    return fill(spans, self.length), (document, used)


class FirstFitText(FirstFit):
  """Documents by first fit: only documents longer than a row are split, and rows may end in padding."""

  def __init__(self, length: int):
    super().__init__((length,), max_tokens=GROUP_ROWS * length)

  def items(self, document: Document) -> Iterable[tuple[Sequence[int], Span]]:
    ids, size = document
    for start in range(0, len(ids) - 1, self.length):
      end = min(start + self.length, len(ids) - 1)
      yield (end - start,), _span(ids, size, start, end)

  def fill(self, items: list[Span]) -> Row:
    return fill(items, self.length)


class TextBuckets(Buckets):
  """Text in rows of a few lengths, see `Buckets`."""

  def tokens(self, content: np.ndarray) -> int:
    return len(content) - 1

  def fill(self, content: np.ndarray, size: float, length: int) -> Row:
    return fill([_span(content, size, 0, min(length, len(content) - 1))] if len(content) else [], length)


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


def fill(spans: Iterable[Span], length: int) -> Row:
  """Returns the row that holds these spans: inputs, targets, positions, segments and weights, each [L], and bytes."""
  row: Row = {key: np.zeros(length, np.int32) for key in ("inputs", "targets", "positions", "segments")}
  filled, text_bytes = 0, 0.0
  for segment, (ids, start, end, size) in enumerate(spans, 1):
    where = slice(filled, filled + end - start)
    row["inputs"][where] = ids[start:end]
    row["targets"][where] = ids[start + 1 : end + 1]
    row["positions"][where] = np.arange(end - start)
    row["segments"][where] = segment
    filled, text_bytes = where.stop, text_bytes + size
  row["weights"] = (row["segments"] > 0).astype(np.float32)
  return row | {"bytes": np.float64(text_bytes)}


def _span(ids: np.ndarray, size: int, start: int, end: int) -> Span:
  return ids, start, end, size * (end - start) / (len(ids) - 1)
