"""Labelled examples as text to text, and examples for debugging."""

import dataclasses
from typing import Any

from lmjax.data.sources.base import BadRecord, Source
from lmjax.data.sources.examples import Example, Question, Tagged
from lmjax.data.sources.pair import Pair
from lmjax.data.sources.python_docs import PythonDocs


@dataclasses.dataclass(frozen=True)
class AsText:
  """Examples of another source as text to text, as T5 reads them: the label's name is the target.

  template: the source, with `{text}` and `{other}` in it, such as `sst2 sentence: {text}`.
  """

  examples: Source
  template: str = "{text}"

  def __post_init__(self):
    try:
      self.template.format(text="", other="")
    except (KeyError, IndexError, ValueError) as error:
      raise ValueError(f"template {self.template!r} has other fields than {{text}} and {{other}}: {error}") from error

  def __len__(self) -> int:
    return len(self.examples)

  def __getitem__(self, index: int) -> Any:
    example: Any = self.examples[index]
    if isinstance(example, BadRecord):
      return example
    return Pair(self.template.format(text=example.text, other=example.other or ""), example.label)


class PythonDocLabels(PythonDocs):
  """Examples for debugging: the first 16 words of each document, and 1 if "return" is one of them, else 0."""

  def __getitem__(self, index: int) -> Example:  # type: ignore[override]  # examples, not text
    words = super().__getitem__(index).split()[:16]
    return Example(" ".join(words), None, str(int(any("eturn" in word for word in words))), f"python:{index}")


class PythonDocComparisons(PythonDocs):
  """Pairs for debugging: the first 8 words of each document and the next 8, and how many of these are new."""

  def __getitem__(self, index: int) -> Example:  # type: ignore[override]  # pairs, not text
    words = (super().__getitem__(index).split() + ["a", "b"])[:16]
    first, second = words[:8] if len(words) == 16 else words[:1], words[8:] or words[1:]
    return Example(" ".join(first), " ".join(second), str(len(set(second) - set(first))), f"python:{index}")


class PythonDocTags(PythonDocs):
  """Sentences for debugging: the first 16 words of each document; those with a capital are tagged."""

  def __getitem__(self, index: int) -> Tagged:  # type: ignore[override]  # tagged words, not text
    words = tuple(super().__getitem__(index).split()[:16])
    return Tagged(words, tuple("B-CAPITAL" if word[0].isupper() else "O" for word in words), f"python:{index}")


class PythonDocQuestions(PythonDocs):
  """Questions for debugging: where is the second word of the first 16 words of each document?"""

  def __getitem__(self, index: int) -> Question:  # type: ignore[override]  # questions, not text
    words = (super().__getitem__(index).split() + ["a", "b"])[:16]
    context, answer = " ".join(words), (words[1], len(words[0]) + 1)
    return Question(str(index), "Second?", context, (answer,), f"python:{index}")
