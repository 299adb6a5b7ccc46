"""Sources of dialogues, in the layouts in which they are published."""

import dataclasses
from collections.abc import Mapping
from typing import Any, NamedTuple

from lmjax.data.chat.format import ASSISTANT
from lmjax.data.chat.template import Message
from lmjax.data.sources.chat_records import Records, Unusable, read_messages, read_prompt, with_system

MESSAGES, ANSWERS = ("messages", "conversations", "conversation"), ("output", "completion", "response", "answer")


class Dialogue(NamedTuple):
  """The turns of a dialogue, and where it was read."""

  messages: tuple[Message, ...]
  where: str = ""


@dataclasses.dataclass(frozen=True)
class JsonDialogues(Records):
  """A dialogue in each record of JSON files, by path or glob, plain or gzipped: one a line, or a list of them.

  A record has `messages` of a `role` and a `content` (or `conversations` of `from` and `value`), or `instruction`,
  `input` and `output` (or `prompt` and `completion`). system: the system message of dialogues without one. split: as
  `:90%`, empty for all. shuffle: number the records in a fixed random order, so that a split is a random sample.
  """

  files: str | tuple[str, ...]
  system: str = ""
  split: str = ""
  shuffle: bool = False

  def record(self, record: dict[str, Any], where: str) -> Dialogue:
    return dialogue(read_dialogue(record), self.system, where)


def dialogue(messages: tuple[Message, ...], system: str, where: str) -> Dialogue:
  """Returns a dialogue, with a system message where it has none and one is given.

  Raises:
    Unusable: it has no answer, or an empty one.
  """
  answers = [message.content for message in messages if message.role == ASSISTANT]
  if not answers:
    raise Unusable("has no turn of the assistant")
  if not all(answer.strip() for answer in answers):
    raise Unusable("has an empty answer")
  return Dialogue(with_system(messages, system), where)


def read_dialogue(record: Mapping[str, Any]) -> tuple[Message, ...]:
  """Returns the turns of a record, in any of the layouts of `JsonDialogues`.

  Raises:
    ValueError: it has none of them.
  """
  for key in MESSAGES:
    if key in record:
      return read_messages(record[key], key)
  answer = next((record[key] for key in ANSWERS if isinstance(record.get(key), str)), None)
  if answer is None:
    raise ValueError(f"has neither messages nor an instruction with its output; its keys: {', '.join(record)}")
  return (*read_prompt(record), Message(ASSISTANT, answer))
