"""What the sources of pairs return."""

from typing import NamedTuple


class Pair(NamedTuple):
  """A source, and the target to generate from it."""

  source: str
  target: str
