"""Rows of fixed length out of documents of any length.

A packer makes the next row of one stream from a position of two integers, and returns the position after it: all there
is to save and resume. Inputs are `[start] + ids` and targets `ids + [end]`, so every token is predicted exactly once.
"""

from collections.abc import Callable

import numpy as np

Row = dict[str, np.ndarray]
Position = tuple[int, int]


def concatenate(
  read: Callable[[int], np.ndarray], position: Position, length: int
) -> tuple[Row, Position, dict[int, float]]:
  """Fills a row with documents one after the other, splitting the last; the rest of it opens the next row.

  Args:
    read: returns the ids of the stream's document k, with start and end around them (empty if it was skipped); raises
      IndexError behind the last one.
    position: the document to read next, and how many of its targets are used up.
    length: tokens in a row.

  Returns:
    the row (inputs, targets, positions, segments, weights, each [L]), all padding when the stream is exhausted; the
    next position; and which share of each document is in it, so that bytes can be counted.
  """
  row = {key: np.zeros(length, np.int32) for key in ("inputs", "targets", "positions", "segments")}
  filled, segment, (document, used) = 0, 0, position
  taken: dict[int, float] = {}
  while filled < length:
    try:
      ids = read(document)
    except IndexError:
      break
    size = min(len(ids) - 1 - used, length - filled)
    if size > 0:
      segment += 1
      here, there = slice(filled, filled + size), slice(used, used + size)
      row["inputs"][here] = ids[:-1][there]
      row["targets"][here] = ids[1:][there]
      row["positions"][here] = np.arange(size)
      row["segments"][here] = segment
      taken[document] = size / (len(ids) - 1)
      filled, used = filled + size, used + size
    if used >= len(ids) - 1:  # true at once for a skipped document
      document, used = document + 1, 0
  row["weights"] = (row["segments"] > 0).astype(np.float32)
  return row, (document, used), taken


def crop(ids: np.ndarray, start: int, length: int) -> Row:
  """Returns a window of one long text from `start`, padded where the text ends; documents run on into each other."""
  window = np.zeros(length + 1, np.int32)
  piece = ids[start : start + length + 1]
  window[: len(piece)] = piece
  weights = (np.arange(length) < len(piece) - 1).astype(np.float32)
  return {"inputs": window[:-1], "targets": window[1:], "weights": weights}


def random_window(ids: np.ndarray, seed: int, stream: int, counter: int, length: int) -> Row:
  """Returns the window that a stream draws at its row `counter`: a pure function of its arguments."""
  rng = np.random.default_rng([seed, stream, counter])
  return crop(ids, int(rng.integers(0, max(len(ids) - length, 1))), length)
