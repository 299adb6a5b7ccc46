"""What sources of dialogues share: records in JSON lines or JSON lists, and the layouts of messages in them."""

import functools
import json
import mmap
import re
import sys
from collections.abc import Mapping
from typing import Any

import numpy as np

from lmjax.data.chat.format import ASSISTANT
from lmjax.data.chat.template import Message
from lmjax.data.sources.base import BadRecord
from lmjax.data.sources.indexed import Index, Lines, expand_paths, line_starts
from lmjax.utils.errors import UserError, one_line, reason
from lmjax.utils.files import parse_json

ROLES = {
  "human": "user", "prompter": "user", "gpt": ASSISTANT, "chatgpt": ASSISTANT, "bot": ASSISTANT, "model": ASSISTANT,
}  # fmt: skip


class Unusable(ValueError):
  """A record that is well formed and teaches nothing, which is left out; the message continues FILE:LINE."""


class Records(Lines):
  """A JSON object in each line of files, or in a list: one that teaches nothing is named, counted and left out."""

  def record(self, record: dict[str, Any], where: str) -> Any:
    """Returns the document of an object.

    Raises:
      ValueError: what is wrong with it; Unusable where it teaches nothing.
    """
    raise NotImplementedError

  @functools.cached_property
  def _index(self) -> Index:
    return Index(expand_paths(self.files), record_starts, self.split, None, self.shuffle)

  @functools.cached_property
  def _usable(self) -> list[int]:
    usable, unusable = [], []
    for i in range(len(self._index)):
      if self._index.document(i) in ("\n", "\r\n"):
        continue
      try:
        self._read(i)
      except Unusable as error:
        unusable.append(f"{self._index.where(i)} {error}")
        continue
      except ValueError:  # reported when it is read
        pass
      usable.append(i)
    message = (
      f"data: {len(unusable):,} of {len(self._index):,} records teach nothing; the first: {''.join(unusable[:1])}"
    )
    if not usable:
      raise UserError(message)
    if unusable:
      print("lmjax:", one_line(message, 1000), file=sys.stderr)
    return usable

  def _read(self, number: int) -> Any:
    text = self._index.document(number)
    if isinstance(text, BadRecord):
      return text
    text = text.strip()
    return self.record(parse_json(text if text.endswith("}") else text.rstrip(",] \r\n\t")), self._index.where(number))

  def __len__(self) -> int:
    return len(self._usable)

  def __getitem__(self, index: int) -> Any:
    number = self._usable[index]
    try:
      return self._read(number)
    except ValueError as error:
      return BadRecord(self._index.where(number), str(error))


def read_prompt(record: Mapping[str, Any]) -> tuple[Message, ...]:
  """Returns the turns before an answer: those of `prompt`, or one of `instruction` and `input`."""
  value = record.get("prompt", record.get("instruction"))
  if isinstance(value, list):
    return read_messages(value, "prompt")
  if not isinstance(value, str) or not value.strip():
    raise ValueError(f"has no text under 'prompt' or 'instruction'; its keys: {', '.join(record)}")
  more = record.get("input")
  text = f"{value}\n\n{more}" if isinstance(more, str) and more.strip() else value
  return (Message("user", text),)


def read_messages(values: Any, key: str) -> tuple[Message, ...]:
  """Returns the messages of a list of objects with a role and a content."""
  if not isinstance(values, list) or not values:
    raise ValueError(f"has no list of messages under {key!r}")
  messages = []
  for value in values:
    fields = value if isinstance(value, Mapping) else {}
    role, content = fields.get("role", fields.get("from")), fields.get("content", fields.get("value"))
    if isinstance(content, list):  # parts, of which some are not text
      parts = [part.get("text") if isinstance(part, Mapping) else part for part in content]
      content = "".join(parts) if all(isinstance(part, str) for part in parts) else None
    if not isinstance(role, str) or not isinstance(content, str):
      raise ValueError(f"has a message under {key!r} without a role and text")
    messages.append(Message(ROLES.get(role, role), content))
  return tuple(messages)


def record_starts(data: bytes | mmap.mmap) -> np.ndarray:
  """Returns the offsets at which records start: of lines, or of the items of a JSON list.

  Raises:
    UserError: the list is malformed.
  """
  if not bytes(data[:64]).removeprefix(b"\xef\xbb\xbf").lstrip().startswith(b"["):
    return line_starts(data)
  text, decoder = bytes(data).decode("latin-1"), json.JSONDecoder()  # a character for each byte
  starts, at, space = [], text.index("[") + 1, re.compile(r"[\s,]*")
  while not text.startswith("]", at := space.match(text, at).end()):
    starts.append(at)
    try:
      at = decoder.raw_decode(text, at)[1]
    except (ValueError, RecursionError) as error:
      raise UserError(f"data: a file is not a JSON list of records: {reason(error)}") from error
  return np.array(starts, np.int64)


def with_system(messages: tuple[Message, ...], system: str) -> tuple[Message, ...]:
  """Returns messages with a system message before them, where one is given and they have none."""
  return (Message("system", system), *messages) if system and messages[0].role != "system" else messages
