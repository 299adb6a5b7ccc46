"""Multiple choice for debugging."""

from lmjax.data.sources.choices import MultipleChoice
from lmjax.data.sources.python_docs import PythonDocs


class PythonDocChoices(PythonDocs):
  """What follows the first four words of each document: the next four words, or the first four of the next document?"""

  def __getitem__(self, index: int) -> MultipleChoice:  # type: ignore[override]  # choices, not text
    own, other = (
      (super(PythonDocChoices, self).__getitem__(i % len(self)).split() + ["."] * 8)[:8] for i in (index, index + 1)
    )
    choices, label = (" ".join(own[4:]), " ".join(other[:4])), index % 2
    return MultipleChoice(" ".join(own[:4]), choices[::-1] if label else choices, str(label), f"python:{index}")
