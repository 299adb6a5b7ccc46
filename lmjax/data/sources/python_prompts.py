"""Prompts for debugging."""

from lmjax.data.chat.template import Message
from lmjax.data.sources.prompts import Prompt
from lmjax.data.sources.python_docs import PythonDocs


class PythonDocPrompts(PythonDocs):
  """The first four words of each document."""

  def __getitem__(self, index: int) -> Prompt:  # type: ignore[override]  # prompts, not text
    return Prompt((Message("user", " ".join(super().__getitem__(index).split()[:4]) or "."),), f"python:{index}")
