"""Sources of answers that were judged one by one, desirable or not, in JSON lines or JSON lists."""

import dataclasses
from typing import Any, NamedTuple

from lmjax.data.chat.format import ASSISTANT
from lmjax.data.chat.template import Message
from lmjax.data.sources.chat_records import Unusable, read_messages, read_prompt, with_system
from lmjax.data.sources.preferences import JsonPreferences, Preference


class Judgement(NamedTuple):
  """The turns before an answer, answers to them, whether each is desirable, and where they were read."""

  prompt: tuple[Message, ...]
  answers: tuple[str, ...]
  desirable: tuple[bool, ...]
  where: str = ""


@dataclasses.dataclass(frozen=True)
class JsonJudgements(JsonPreferences):
  """Judged answers of JSON files; see `JsonDialogues`.

  A record has a `prompt` (or `instruction` and `input`), its `completion`, text or a list with a message of the
  assistant, and a `label`, true or false. Or it is a comparison, of which the best answer is desirable and no other.
  """

  def record(self, record: dict[str, Any], where: str) -> Judgement:  # type: ignore[override]  # not ranked
    if "completion" not in record:
      return judged(super().record(record, where))
    prompt, answer, label = read_prompt(record), record["completion"], record.get("label")
    if isinstance(answer, list):
      messages = read_messages(answer, "completion")
      answer = messages[0].content if [message.role for message in messages] == [ASSISTANT] else None
    if not isinstance(answer, str) or not isinstance(label, bool):
      raise ValueError("has no answer of the assistant as `completion`, or a `label` that is not true or false")
    if not answer.strip():
      raise Unusable("has an empty answer")
    return Judgement(with_system(prompt, self.system), (answer,), (label,), where)


def judged(preference: Preference) -> Judgement:
  """Returns the answers of a comparison, of which the best one is desirable."""
  return Judgement(*preference[:2], tuple(i == 0 for i in range(len(preference.answers))), preference.where)
