"""Preferences for debugging."""

from lmjax.data.chat.template import Message
from lmjax.data.sources.preferences import Preference
from lmjax.data.sources.python_docs import PythonDocs


class PythonDocPreferences(PythonDocs):
  """After the first four words of each document, the next four are better than the first four again."""

  def __getitem__(self, index: int) -> Preference:  # type: ignore[override]  # preferences, not text
    words = (super().__getitem__(index).split() + ["."] * 8)[:8]
    first, following = (" ".join(part) for part in (words[:4], words[4:]))
    return Preference((Message("user", first),), (following, first), f"python:{index}")
