"""Preferences for debugging."""

from lmjax.data.sources.preferences import Preference
from lmjax.data.sources.python_dialogues import PythonDocDialogues


class PythonDocPreferences(PythonDocDialogues):
  """Of two answers, the next four words are better than the first four."""

  def __getitem__(self, index: int) -> Preference:  # type: ignore[override]
    (prompt, answer), where = super().__getitem__(index)
    return Preference((prompt,), (answer.content, prompt.content), where)
