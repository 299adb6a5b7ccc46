"""Rows of fixed length out of documents of any length.

A packer makes the next row of one stream from a position, a few integers, and returns the position after it: all there
is to save and resume. Inputs are `[start] + ids` and targets `ids + [end]`, so every token is predicted exactly once.
Each row carries `bytes`, the UTF-8 bytes of text that its targets stand for.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Protocol

import numpy as np

Row = dict[str, np.ndarray]
Position = tuple[int, ...]
Document = tuple[np.ndarray, int]  # ids with start and end around them (empty if it was skipped), bytes of its text
ReadDocument = Callable[[int], Document]  # the stream's document k; raises IndexError behind the last one
Span = tuple[np.ndarray, int, int, float]  # ids, its first target and the one after its last, bytes

GROUP = 64  # rows that first-fit fills from the same documents


class Packer(Protocol):
  """What makes the rows of one stream."""

  length: int  # tokens in a row

  def row(self, read: ReadDocument, position: Position) -> tuple[Row, Position]:
    """Returns the next row and the position after it; a row of padding where the stream is exhausted."""


class Concatenate:
  """Documents one after the other, the last one split; the rest of it opens the next row.

  Position: the document to read next, and how many of its targets are used up.
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


class FirstFit:
  """Each document in the first row that has room for it: none is split that fits a row, and some rows end in padding.

  Documents that could fill 64 rows are placed at a time, so that a row is a pure function of its position: the first
  document of its group, and the row's number in it. Longer documents than a row are split.
  """

  def __init__(self, length: int):
    self.length = length
    self._group: tuple[int, list[list[Span]], int] = (-1, [], 0)

  def row(self, read: ReadDocument, position: Position) -> tuple[Row, Position]:
    first, number = position
    if self._group[0] != first:
      self._group = (first, *self._place(read, first))
    _, rows, after = self._group
    if not rows:
      return fill([], self.length), position
    return fill(rows[number], self.length), (first, number + 1) if number + 1 < len(rows) else (after, 0)

  def _place(self, read: ReadDocument, document: int) -> tuple[list[list[Span]], int]:
    """Returns the rows of the group that starts with a document, and the document after it."""
    rows: list[list[Span]] = []
    room = np.zeros(0, np.int64)
    tokens = 0
    while tokens < GROUP * self.length:
      try:
        ids, size = read(document)
      except IndexError:
        break
      document += 1
      for start in range(0, len(ids) - 1, self.length):
        span = _span(ids, size, start, min(start + self.length, len(ids) - 1))
        wanted = span[2] - start
        fits = np.flatnonzero(room >= wanted)
        if not len(fits):
          rows.append([])
          room, fits = np.append(room, self.length), [len(rows) - 1]
        rows[fits[0]].append(span)
        room[fits[0]] -= wanted
        tokens += wanted
    return rows, document


class Buckets:
  """A document a row, in rows of a few lengths; longer ones than the longest are cut.

  Every stream makes rows of the same length at the same time, by a fixed schedule in which each length comes as often
  as a sample of the documents wants it. Position: the row's number, then for each length the document to look at next.
  """

  def __init__(self, lengths: Sequence[int], schedule: Sequence[int]):
    self.lengths, self.length = tuple(lengths), max(lengths)
    self.schedule = tuple(schedule)  # numbers of lengths, cycled through

  def row(self, read: ReadDocument, position: Position) -> tuple[Row, Position]:
    turn, *documents = position
    bucket = self.schedule[turn % len(self.schedule)]
    while True:
      try:
        ids, size = read(documents[bucket])
      except IndexError:  # behind the end of a single pass
        return fill([], self.lengths[bucket]), position
      documents[bucket] += 1
      if len(ids) > 1 and self.bucket(len(ids) - 1) == bucket:
        break
    length = self.lengths[bucket]
    return fill([_span(ids, size, 0, min(length, len(ids) - 1))], length), (turn + 1, *documents)

  def bucket(self, targets: int) -> int:
    """Returns the number of the shortest scheduled length that holds so many targets, or of the longest."""
    used = sorted(set(self.schedule))
    return next((b for b in used if targets <= self.lengths[b]), used[-1])


class Windows:
  """Windows of one long text, in which documents run on into each other.

  With a seed each is drawn anywhere, as a pure function of (seed, stream, row); without one they follow each other.
  Position: the row's number.
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
    row = {"inputs": window[:-1], "targets": window[1:], "weights": weights}
    return row | {"bytes": np.float64(weights.sum() * self._bytes_per_token)}, (number + 1,)


def fill(spans: Iterable[Span], length: int) -> Row:
  """Returns a row (inputs, targets, positions, segments, weights, each [L], and bytes) of spans of documents."""
  row = {key: np.zeros(length, np.int32) for key in ("inputs", "targets", "positions", "segments")}
  filled, text_bytes = 0, 0.0
  for segment, (ids, start, end, size) in enumerate(spans, 1):
    here = slice(filled, filled + end - start)
    row["inputs"][here] = ids[start:end]
    row["targets"][here] = ids[start + 1 : end + 1]
    row["positions"][here] = np.arange(end - start)
    row["segments"][here] = segment
    filled, text_bytes = here.stop, text_bytes + size
  row["weights"] = (row["segments"] > 0).astype(np.float32)
  return row | {"bytes": np.float64(text_bytes)}


def _span(ids: np.ndarray, size: int, start: int, end: int) -> Span:
  return ids, start, end, size * (end - start) / (len(ids) - 1)
