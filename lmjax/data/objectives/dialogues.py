"""Rows of dialogues, of which a model learns what the assistant writes."""

import dataclasses
from collections.abc import Iterable, Sequence
from typing import Any, ClassVar

import numpy as np

from lmjax.data.chat.format import ASSISTANT
from lmjax.data.documents import Documents
from lmjax.data.first_fit import GROUP_ROWS, FirstFit
from lmjax.data.objectives.chats import ChatDocuments, Chats, place, shorten
from lmjax.data.packer import Document, Packer, Row
from lmjax.data.sources.base import Source
from lmjax.data.sources.dialogues import Dialogue
from lmjax.data.tokenizers.base import Tokenizer
from lmjax.utils.errors import UserError


@dataclasses.dataclass(frozen=True)
class Dialogues(Chats):
  """Rows of dialogues by first fit; no dialogue crosses the end of a row or attends to another.

  The loss weight is 1 on the tokens of the assistant, with the end of each turn, and 0 on all others. Of a dialogue
  that is longer than a row, the oldest turns are left out, but for the system message; what is too long then loses its
  end. One whose last prompt leaves no space for an answer is malformed.
  """

  debug_source: ClassVar[str] = "lmjax.data.sources.python_dialogues:PythonDocDialogues"

  def messages(self, document: Any) -> Sequence[str]:
    if not isinstance(document, Dialogue):
      raise UserError("data: the rows need dialogues: use a source of lmjax.data.sources.dialogues")
    return [message.content for message in document.messages]

  def documents(self, source: Source, tokenizer: Tokenizer, seed: int | None, streams: int) -> Documents:
    return DialogueDocuments(self, source, tokenizer, seed, streams)

  def packers(self, documents: Documents, streams: Iterable[int]) -> dict[int, Packer]:
    return {stream: DialogueRows(self.length) for stream in streams}


class DialogueDocuments(ChatDocuments):
  """Dialogues as their ids [T] and which of them the assistant writes [T]."""

  def encode_chat(self, document: Dialogue) -> Any:
    (own,) = shorten(document.messages, lambda messages: [self.chat.encode(messages)], self.reader.length)
    answers = (message.content for message in document.messages if message.role == ASSISTANT)
    return list(own), len("".join(answers).encode("utf-8"))


class DialogueRows(FirstFit):
  """Dialogues by first fit."""

  def __init__(self, length: int):
    super().__init__((length,), max_tokens=GROUP_ROWS * length)

  def items(self, document: Document) -> Iterable[tuple[Sequence[int], Any]]:
    content, size = document
    if len(content):
      yield (len(content[0]) - 1,), (*content, size)

  def fill(self, items: list[tuple[np.ndarray, np.ndarray, float]]) -> Row:
    row = place(enumerate(((ids, answer) for ids, answer, _ in items), 1), self.length)
    return row | {"bytes": np.float64(sum(size for *_, size in items))}
