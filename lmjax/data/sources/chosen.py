"""Sources of dialogues in data of preferences."""

import dataclasses
from typing import Any

from lmjax.data.chat.format import ASSISTANT
from lmjax.data.chat.template import Message
from lmjax.data.sources.chat_records import Records
from lmjax.data.sources.dialogues import Dialogue, dialogue
from lmjax.data.sources.preferences import read_answers


@dataclasses.dataclass(frozen=True)
class ChosenDialogues(Records):
  """The dialogue with the best answer of each record of `JsonPreferences`."""

  files: str | tuple[str, ...]
  system: str = ""
  split: str = ""
  shuffle: bool = False

  def record(self, record: dict[str, Any], where: str) -> Dialogue:
    prompt, answers = read_answers(record)
    return dialogue((*prompt, Message(ASSISTANT, answers[0])), self.system, where)
