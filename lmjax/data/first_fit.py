"""Rows that are filled by first fit, whatever their items are."""

import math
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from lmjax.data.packer import Document, Position, ReadDocument, Row

GROUP_ROWS = 64  # size of a group of first fit, in rows or in rows' worth of tokens


class FirstFit:
  """Places each item in the first row that has space for it.

  A row may have several sequences, such as a source and a target; `lengths` are their lengths, and an item has a length
  in each of them. The documents of a whole group of rows are placed at once, so that a row is a pure function of its
  position: the first document of its group, and the row's number in the group. A group is complete when it has
  `max_rows` rows, or `max_tokens` tokens in its first sequence, and includes the document that completes it.
  """

  def __init__(self, lengths: tuple[int, ...], max_rows: float = math.inf, max_tokens: float = math.inf):
    self.lengths, self.max_rows, self.max_tokens = lengths, max_rows, max_tokens
    self.length = lengths[0]
    self._group: tuple[int, list[list], int] = (-1, [], 0)  # first document, items of each row, next document

  def items(self, document: Document) -> Iterable[tuple[Sequence[int], Any]]:
    """Yields (lengths, item) for each item of a document; no item is longer than a row."""
    raise NotImplementedError

  def fill(self, items: list) -> Row:
    """Returns the row that holds these items."""
    raise NotImplementedError

  def row(self, read: ReadDocument, position: Position) -> tuple[Row, Position]:
    first, number = position
    if self._group[0] != first:
      self._group = (first, *self._pack(read, first))
    _, rows, after = self._group
    if not rows:
      return self.fill([]), position
    return self.fill(rows[number]), (first, number + 1) if number + 1 < len(rows) else (after, 0)

  def _pack(self, read: ReadDocument, document: int) -> tuple[list[list], int]:
    """Returns the rows of the group that starts with a document, and the document after the group."""
    rows: list[list] = []
    space = np.zeros((0, len(self.lengths)), np.int64)
    tokens = 0
    while len(rows) < self.max_rows and tokens < self.max_tokens:
      try:
        content = read(document)
      except IndexError:
        break
      document += 1
      for lengths, item in self.items(content):
        fits = np.flatnonzero((space >= lengths).all(axis=1))
        if not len(fits):
          rows.append([])
          space, fits = np.concatenate([space, [self.lengths]]), [len(rows) - 1]
        rows[fits[0]].append(item)
        space[fits[0]] -= lengths
        tokens += lengths[0]
    return rows, document
