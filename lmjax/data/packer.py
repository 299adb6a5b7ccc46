"""The interface of packers, which make rows of a fixed length out of the documents of one stream.

A packer makes the row at a position, which is a few integers, and returns the position of the next row; nothing else
has to be saved to resume a run. Every row has a key `bytes`: how many UTF-8 bytes of text its targets cover.
"""

from collections.abc import Callable
from typing import Protocol

import numpy as np

Row = dict[str, np.ndarray | np.generic]
Position = tuple[int, ...]
# The content of a document and the number of UTF-8 bytes of its text. By default the content is ids [T] from the start
# to the end token; some objectives use a list of arrays instead: sentences, or the two sides of a pair. Empty if the
# document has no text.
Document = tuple[np.ndarray | list[np.ndarray], int]
ReadDocument = Callable[[int], Document]  # document k of the stream; raises IndexError after the last one


class Packer(Protocol):
  """Makes the rows of one stream."""

  length: int  # tokens in a row

  def row(self, read: ReadDocument, position: Position) -> tuple[Row, Position]:
    """Returns the row at a position and the position of the next row; after the last document, a row of padding."""
