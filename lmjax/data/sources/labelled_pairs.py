"""Labelled examples for debugging, made of the documentation of Python."""

from lmjax.data.sources.examples import Example, Question, Tagged
from lmjax.data.sources.python_docs import PythonDocs


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
