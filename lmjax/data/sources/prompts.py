"""Sources of prompts, to which a model writes answers of its own."""

import dataclasses
from typing import Any, NamedTuple

from lmjax.data.chat.format import ASSISTANT
from lmjax.data.chat.template import Message
from lmjax.data.sources.chat_records import Records, Unusable, read_messages, read_prompt, with_system
from lmjax.data.sources.dialogues import MESSAGES
from lmjax.data.sources.preferences import read_answers


class Prompt(NamedTuple):
  """The turns before an answer, and where they were read."""

  messages: tuple[Message, ...]
  where: str = ""


@dataclasses.dataclass(frozen=True)
class JsonPrompts(Records):
  """The turns before the last answer of each record in JSON files; see `JsonDialogues` for split and shuffle.

  A record has a `prompt` (or `instruction` and `input`), `messages`, or two transcripts `chosen` and `rejected`; the
  answers in it are not read. system: the system message of prompts without one.
  """

  files: str | tuple[str, ...]
  system: str = ""
  split: str = ""
  shuffle: bool = False

  def record(self, record: dict[str, Any], where: str) -> Prompt:
    key = next((key for key in MESSAGES if key in record), None)
    if key:
      messages = read_messages(record[key], key)
      while messages and messages[-1].role == ASSISTANT:
        messages = messages[:-1]
    elif "prompt" in record or "instruction" in record:
      messages = read_prompt(record)
    else:
      messages = read_answers(record)[0]
    if not any(message.role == "user" for message in messages):
      raise Unusable("has no turn of the user")
    return Prompt(with_system(messages, self.system), where)
