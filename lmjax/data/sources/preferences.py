"""Sources of answers that people compared, in JSON lines or JSON lists."""

import dataclasses
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

from lmjax.data.chat.format import ASSISTANT
from lmjax.data.chat.template import Message
from lmjax.data.sources.chat_records import ROLES, Records, Unusable, read_messages, read_prompt, with_system

TURN = re.compile(r"(?:^|\n\n)(Human|Assistant):")  # of the transcripts of Anthropic's preference data


class Preference(NamedTuple):
  """The turns before an answer, several answers from the best to the worst, and where they were read."""

  prompt: tuple[Message, ...]
  answers: tuple[str, ...]
  where: str = ""


@dataclasses.dataclass(frozen=True)
class JsonPreferences(Records):
  """Answers to one prompt from the best to the worst, in each record of JSON files; see `JsonDialogues`.

  A record has `chosen` and `rejected`: answers to its `prompt` (or `instruction` and `input`), whole dialogues as
  messages, or transcripts of turns `Human:` and `Assistant:`. Or it has a list `answers`, ranked.
  """

  files: str | tuple[str, ...]
  system: str = ""
  split: str = ""
  shuffle: bool = False

  def record(self, record: dict[str, Any], where: str) -> Preference:
    prompt, answers = read_answers(record)
    if not all(answer.strip() for answer in answers):
      raise Unusable("has an empty answer")
    if len(answers) < 2 or len({answer.strip() for answer in answers}) < len(answers):
      raise Unusable("has two answers that are the same" if len(answers) > 1 else "has a single answer")
    return Preference(with_system(prompt, self.system), answers, where)


def read_answers(record: Mapping[str, Any]) -> tuple[tuple[Message, ...], tuple[str, ...]]:
  """Returns the turns before the answers, and the answers from the best to the worst.

  Raises:
    ValueError: the record has no answers; Unusable where the dialogues differ before their last turns.
  """
  ranked = record.get("answers")
  values = ranked if isinstance(ranked, list) else [record.get("chosen"), record.get("rejected")]
  if not values or not all(isinstance(value, str | list) and value for value in values):
    if all(isinstance(value, str | list) for value in values):
      raise Unusable("has an empty answer")
    raise ValueError(f"has no `chosen` and `rejected`, and no ranked `answers`; its keys: {', '.join(record)}")
  has_prompt = any(key in record for key in ("prompt", "instruction"))
  if all(isinstance(value, str) for value in values) and has_prompt:
    return read_prompt(record), tuple(values)
  dialogues = [_transcript(value) if isinstance(value, str) else read_messages(value, "answers") for value in values]
  if any(messages[-1].role != ASSISTANT for messages in dialogues):
    raise Unusable("ends without an answer")
  before = {messages[:-1] for messages in dialogues}
  if len(before) > 1:
    raise Unusable("has dialogues that differ before their last answers")
  prompt = before.pop()
  if has_prompt and len(prompt) == 0:
    prompt = read_prompt(record)
  if not prompt:
    raise ValueError("has no prompt")
  return prompt, tuple(messages[-1].content for messages in dialogues)


def _transcript(text: str) -> tuple[Message, ...]:
  """Returns the turns of a transcript `\\n\\nHuman: ...\\n\\nAssistant: ...`."""
  parts = TURN.split(text)
  if len(parts) < 3 or parts[0].strip():
    raise ValueError("has answers without a prompt, which are no transcripts either: they start with no 'Human:'")
  return tuple(
    Message(ROLES.get(role.lower(), ASSISTANT), own.strip()) for role, own in zip(parts[1::2], parts[2::2], strict=True)
  )
