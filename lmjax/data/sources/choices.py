"""What the sources of multiple choice return."""

from typing import NamedTuple


class MultipleChoice(NamedTuple):
  """A context, the choices of which one follows it, the number of that from 0, and where it was read."""

  text: str
  choices: tuple[str, ...]
  label: str
  where: str = ""
