"""What the sources of downstream tasks return."""

from typing import NamedTuple


class Example(NamedTuple):
  """A string, or a pair of them, its label, and where it was read; a number to predict is a label like any other."""

  text: str
  other: str | None
  label: str
  where: str = ""


class Tagged(NamedTuple):
  """The words of a sentence, their tags, and where it was read."""

  words: tuple[str, ...]
  tags: tuple[str, ...]
  where: str = ""


class Question(NamedTuple):
  """A question about a paragraph, its answers with the characters at which they start, and where it was read.

  A question without an answer in its paragraph has none.
  """

  id: str
  question: str
  context: str
  answers: tuple[tuple[str, int], ...]
  where: str = ""
