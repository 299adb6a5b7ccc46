"""A document in each row, in rows of a few lengths."""

import itertools
from collections.abc import Sequence
from typing import Any

from lmjax.data.packer import Position, ReadDocument, Row

PATIENCE = 512  # documents


class Buckets:
  """One document in each row, in rows of a few lengths; a document longer than the longest row is truncated.

  All streams make rows of the same length at the same time, by a fixed schedule in which each length occurs as often as
  in a sample of the documents. A row whose length is so rare that none of the next `PATIENCE` documents has it takes a
  shorter document. Position: the row's number, then for each length the document to read next.
  """

  def __init__(self, lengths: Sequence[int], schedule: Sequence[int]):
    self.lengths, self.length = tuple(lengths), max(lengths)
    self.schedule = tuple(schedule)  # indices into lengths, repeated
    self._scheduled = sorted(set(schedule))

  def row(self, read: ReadDocument, position: Position) -> tuple[Row, Position]:
    number, *documents = position
    bucket = self.schedule[number % len(self.schedule)]
    for reads in itertools.count(1):
      try:
        content, size = read(documents[bucket])
      except IndexError:  # after the end of a single pass
        return self.fill([], 0, self.lengths[bucket]), position
      documents[bucket] += 1
      if (tokens := self.tokens(content)) > 0:
        fitting = self.bucket(tokens)
        if fitting == bucket or (fitting < bucket and reads > PATIENCE):
          break
    return self.fill(content, size, self.lengths[bucket]), (number + 1, *documents)

  def tokens(self, content: Any) -> int:
    """Returns how many tokens of a row a document has; 0 for one that is skipped."""
    raise NotImplementedError

  def fill(self, content: Any, size: float, length: int) -> Row:
    """Returns the row of a document; a row of padding for one without content."""
    raise NotImplementedError

  def bucket(self, targets: int) -> int:
    """Returns the index of the shortest scheduled length that is at least `targets`, otherwise of the longest one."""
    return next((b for b in self._scheduled if targets <= self.lengths[b]), self._scheduled[-1])
