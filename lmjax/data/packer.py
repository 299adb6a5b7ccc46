"""What a packer is: it makes the rows of one stream out of documents of any length.

It makes the next row from a position, a few integers, and returns the position after it; nothing else has to be saved
to resume. Each row has a key `bytes`, the UTF-8 bytes of the text that its targets cover.
"""

from collections.abc import Callable
from typing import Protocol

import numpy as np

Row = dict[str, np.ndarray | np.generic]
Position = tuple[int, ...]
# What a packer reads, and the UTF-8 bytes of its text. By default ids [T] between start and end; the objectives other
# than causal LM give a list of arrays: the sentences, the two sides of a pair, ... Empty if there is nothing to read.
Document = tuple[np.ndarray | list[np.ndarray], int]
ReadDocument = Callable[[int], Document]  # document k of the stream; raises IndexError after the last one


class Packer(Protocol):
  """Makes the rows of one stream."""

  length: int  # tokens in a row

  def row(self, read: ReadDocument, position: Position) -> tuple[Row, Position]:
    """Returns the next row and the position after it; a row of padding if the stream is exhausted."""
