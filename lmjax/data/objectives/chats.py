"""What rows of dialogues share: the tokenizer with its chat template, and what happens to long dialogues."""

import dataclasses
import json
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
from etils import epath

from lmjax.data.chat.format import CONTROL, ChatFormat, ChatIds
from lmjax.data.chat.template import ChatError, Message
from lmjax.data.documents import Documents
from lmjax.data.packer import Row
from lmjax.data.pipeline import Reader
from lmjax.data.sources.base import BadRecord, Source, read_document
from lmjax.data.tokenizers.base import Tokenizer, write_file
from lmjax.data.tokenizers.bpe import BPE

NOW = "2025-01-01"  # the date that templates may write in training


class ChatBPE(BPE):
  """A tokenizer that is trained for a run, with its chat template."""

  chat_template: str = ""

  def save(self, folder: epath.PathLike) -> None:
    super().save(folder)
    write_file(folder, "chat_template.jinja", self.chat_template)
    write_file(folder, "generation_config.json", json.dumps({"bos_token_id": self.start, "eos_token_id": self.ends}))


@dataclasses.dataclass(frozen=True)
class Chats(Reader):
  """Rows of dialogues. template: of the messages, see `chat.format.ChatFormat`; the tokenizer of the run keeps it."""

  template: str = ""

  @classmethod
  def debug(cls, settings: dict[str, Any]) -> dict[str, Any]:
    return super().debug(settings) | {"length": 96, "tokenizer": {"algorithm": "bpe", "size": 512}}

  def messages(self, document: Any) -> Sequence[str]:
    """Returns the text of a document, on which a tokenizer is trained.

    Raises:
      UserError: it is of another kind.
    """
    raise NotImplementedError

  def make_tokenizer(self) -> Tokenizer:
    """Returns the tokenizer with its chat template; one that is trained here gets the special tokens of ChatML."""
    read = (own for i in range(len(self.source)) if not isinstance(own := read_document(self.source, i), BadRecord))
    tokenizer: Any = self.tokenizer.make(text for own in read for text in self.messages(own))
    if isinstance(tokenizer, BPE) and not self.tokenizer.path:
      tokenizer.fast.add_special_tokens(list(CONTROL))  # the second one ends an answer, as the end does a document
      tokenizer = ChatBPE(tokenizer.fast, tokenizer.start, (tokenizer.end, tokenizer.fast.token_to_id(CONTROL[1])))
    tokenizer.chat_template = ChatFormat(tokenizer, self.template).template.source
    return tokenizer


class ChatDocuments(Documents):
  """Dialogues, encoded; a subclass defines `encode_chat`."""

  requires = "dialogues"

  def __init__(self, reader: Chats, source: Source, tokenizer: Tokenizer, seed: int | None, streams: int):
    super().__init__(source, tokenizer, seed, streams)
    self.reader, self.chat = reader, ChatFormat(tokenizer, reader.template, NOW)

  def encode_chat(self, document: Any) -> Any:
    """Returns the content of a document and the UTF-8 bytes of its answers; raises ChatError where it has none."""
    raise NotImplementedError

  def encode_text(self, document: Any) -> Any:
    self.reader.messages(document)
    try:
      return self.encode_chat(document)
    except ChatError as error:
      return BadRecord(document.where, f"cannot be used: {error}")


def shorten(
  messages: Sequence[Message], encode: Callable[[Sequence[Message]], list[ChatIds]], length: int
) -> list[ChatIds]:
  """Returns encoded dialogues of at most `length` + 1 tokens, without what follows the last token of an answer.

  The oldest turns after the system message are left out until all fit, as long as a prompt and an answer remain; then
  the end is left out.

  Args:
    encode: returns the dialogues with these messages: one, or one for each of several answers to them.

  Raises:
    ChatError: of a dialogue, no token of an answer remains.
  """
  system, turns = [m for m in messages[:1] if m.role == "system"], list(messages)
  turns = turns[len(system) :]
  encoded = [_cut(own) for own in encode([*system, *turns])]
  while max(len(own.ids) for own in encoded) > length + 1:
    after = next((i for i, message in enumerate(turns) if i and message.role == "user"), None)
    if after is None:
      break
    turns = turns[after:]
    encoded = [_cut(own) for own in encode([*system, *turns])]
  short = [ChatIds(ids[: length + 1], answer[: length + 1]) for ids, answer in encoded]
  if not all(own.answer[1:].any() for own in short):
    most = max(int(np.argmax(own.answer)) for own in encoded)
    raise ChatError(f"its prompt of {most:,} tokens leaves no space for an answer in {length:,}")
  return short


def _cut(encoded: ChatIds) -> ChatIds:
  """Returns a dialogue up to the last token of an answer."""
  size = int(np.flatnonzero(encoded.answer)[-1]) + 1 if encoded.answer.any() else len(encoded.ids)
  return ChatIds(encoded.ids[:size], encoded.answer[:size])


def last(encoded: ChatIds) -> ChatIds:
  """Returns a dialogue of which only the last answer counts, not those that are part of the prompt."""
  ids, answer = encoded
  numbers = np.cumsum(np.diff(answer, prepend=False) & answer)  # of the answer that a token belongs to
  return ChatIds(ids, answer & (numbers == numbers[-1]))


def place(items: Iterable[tuple[int, tuple[np.ndarray, np.ndarray]]], length: int) -> Row:
  """Returns the row that holds dialogues: inputs, targets, positions, segments and weights, each [L].

  Args:
    items: of each dialogue the number of its segment, its ids [T], and which of them are to be learned [T].
  """
  row: Row = {key: np.zeros(length, np.int32) for key in ("inputs", "targets", "positions", "segments")}
  row["weights"], at = np.zeros(length, np.float32), 0
  for segment, (ids, answer) in items:
    own = slice(at, at := at + len(ids) - 1)
    row["inputs"][own], row["targets"][own], row["weights"][own] = ids[:-1], ids[1:], answer[1:]
    row["positions"][own], row["segments"][own] = np.arange(len(ids) - 1), segment
  return row
