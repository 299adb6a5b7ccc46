"""Labelled examples as text to text."""

import dataclasses
from typing import Any

from lmjax.data.sources.base import BadRecord, Source
from lmjax.data.sources.choices import MultipleChoice
from lmjax.data.sources.examples import Question, Tagged
from lmjax.data.sources.pair import Pair


@dataclasses.dataclass(frozen=True)
class AsText:
  """Examples of another source as text to text, as T5 reads them (Raffel et al., 2020, arXiv:1910.10683, appendix D).

  The target is the name of the label, the tags of the words, the first answer of a question, or the choice that is
  right; a question without an answer has the target "unanswerable".

  template: the source, with `{text}` and `{other}` in it, such as `sst2 sentence: {text}`; of a question, its paragraph
  is the other text, and of choices, all of them. rounded: labels are numbers, and the target is the nearest multiple of
  this one; 0 leaves them.
  """

  examples: Source
  template: str = "{text}"
  rounded: float = 0.0

  def __post_init__(self):
    try:
      self.template.format(text="", other="")
    except (KeyError, IndexError, ValueError) as error:
      raise ValueError(f"template {self.template!r} has other fields than {{text}} and {{other}}: {error}") from error

  def __len__(self) -> int:
    return len(self.examples)

  def __getitem__(self, index: int) -> Pair | BadRecord:
    example: Any = self.examples[index]
    if isinstance(example, BadRecord):
      return example
    if isinstance(example, MultipleChoice) and not 0 <= int(example.label) < len(example.choices):
      return BadRecord(example.where, f"has no choice {example.label}")
    text, other, target = _sides(example)
    if not text.strip() or (other is not None and not other.strip()):
      return BadRecord(example.where, "has an empty text")
    if self.rounded:
      try:
        target = f"{round(float(target) / self.rounded) * self.rounded:.{len(f'{self.rounded:g}'.partition('.')[2])}f}"
      except (ValueError, OverflowError):
        return BadRecord(example.where, f"has the label {target!r}, which is not a number")
    return Pair(self.template.format(text=text, other=other or ""), target)


def _sides(example: Any) -> tuple[str, str | None, str]:
  """Returns the text of an example, its other text, and its target."""
  if isinstance(example, Question):
    return example.question, example.context, example.answers[0][0] if example.answers else "unanswerable"
  if isinstance(example, Tagged):
    return " ".join(example.words), None, " ".join(example.tags)
  if isinstance(example, MultipleChoice):
    choices = " ".join(f"choice{i}: {choice}" for i, choice in enumerate(example.choices, 1))
    return example.text, choices, example.choices[int(example.label)]
  return example.text, example.other, example.label
