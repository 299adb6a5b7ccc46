"""Rows of a fixed length out of text, one document after the other.

Inputs are `[start] + ids` and targets `ids + [end]`, so every token is predicted exactly once.
"""

from collections.abc import Iterable

import numpy as np

from lmjax.data.packer import Position, ReadDocument, Row

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
        spans.append(span_of(ids, size, used, end))
        filled, used = filled + end - used, end
      if used >= targets:  # true at once for a skipped document
        document, used = document + 1, 0
    return fill(spans, self.length), (document, used)


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


def span_of(ids: np.ndarray, size: int, start: int, end: int) -> Span:
  """Returns a part of a document, of `size` bytes in all."""
  return ids, start, end, size * (end - start) / (len(ids) - 1)
