"""Dialogues for debugging."""

from lmjax.data.chat.format import ASSISTANT
from lmjax.data.chat.template import Message
from lmjax.data.sources.dialogues import Dialogue
from lmjax.data.sources.python_docs import PythonDocs


class PythonDocDialogues(PythonDocs):
  """The first four words of each document, and the next four as the answer."""

  def __getitem__(self, index: int) -> Dialogue:  # type: ignore[override]  # dialogues, not text
    words = (super().__getitem__(index).split() + ["."] * 8)[:8]
    messages = Message("user", " ".join(words[:4])), Message(ASSISTANT, " ".join(words[4:]))
    return Dialogue(messages, f"python:{index}")
