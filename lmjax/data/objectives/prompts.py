"""Rows of prompts, to which a policy writes answers while it trains."""

import dataclasses
import functools
from collections.abc import Iterable, Sequence
from typing import Any, ClassVar

import numpy as np

from lmjax.data.chat.prompts import ChatPrompts
from lmjax.data.chat.template import ChatError
from lmjax.data.documents import Documents
from lmjax.data.objectives.chats import NOW, ChatDocuments, Chats
from lmjax.data.packer import Packer, Position, ReadDocument, Row
from lmjax.data.sources.base import Source
from lmjax.data.sources.prompts import Prompt
from lmjax.data.tokenizers.base import Tokenizer, ends_of
from lmjax.data.tokenizers.bpe import BPE
from lmjax.utils.errors import UserError


class AnswerText:
  """How the text of answers is read, and which ids end one; what a task needs of a tokenizer."""

  def __init__(self, tokenizer: Tokenizer, template: str):
    self.tokenizer, self.template = tokenizer, template

  @functools.cached_property
  def ends(self) -> tuple[int, ...]:
    """The ids that end an answer."""
    if not isinstance(self.tokenizer, BPE):  # a stand-in, for planning
      return ends_of(self.tokenizer)
    return ChatPrompts(self.tokenizer, self.template, NOW).ends

  @property
  def start(self) -> int:
    """The id that the decoder of an encoder-decoder reads first."""
    return self.tokenizer.start

  def decode(self, ids: Iterable[int]) -> str:
    """Returns the text of ids, without what ends an answer."""
    return self.tokenizer.decode([int(i) for i in ids if int(i) not in self.ends])


@dataclasses.dataclass(frozen=True)
class Prompts(Chats):
  """A prompt in each row, up to where the answer starts, padded on the left to `prompt_tokens`.

  `length` is that of a prompt and its answer together, so an answer has length - prompt_tokens tokens at most. Of a
  prompt that is too long, the oldest turns are left out, but for the system message; one that is still too long is
  malformed.
  """

  prompt_tokens: int = 0  # 0 is half of `length`
  debug_source: ClassVar[str] = "lmjax.data.sources.python_prompts:PythonDocPrompts"

  def __post_init__(self):
    super().__post_init__()
    if not 0 <= self.prompt_tokens < self.length:
      raise ValueError(f"prompt_tokens must be at least 0 and below the length of {self.length}")

  @property
  def width(self) -> int:
    """The number of tokens of a row."""
    return self.prompt_tokens or self.length // 2

  @classmethod
  def debug(cls, settings: dict[str, Any]) -> dict[str, Any]:
    return super().debug(settings) | {"length": 48, "prompt_tokens": 32}

  def shared(self, tokenizer: Tokenizer | None = None) -> dict[str, Any]:
    text = None if tokenizer is None else AnswerText(tokenizer, self.template)
    return {"answer_tokens": self.length - self.width, "text": text}

  def messages(self, document: Any) -> Sequence[str]:
    if not isinstance(document, Prompt):
      raise UserError("data: the rows need prompts: use a source of lmjax.data.sources.prompts")
    return [message.content for message in document.messages]

  def documents(self, source: Source, tokenizer: Tokenizer, seed: int | None, streams: int) -> Documents:
    return PromptDocuments(self, source, tokenizer, seed, streams)

  def packers(self, documents: Documents, streams: Iterable[int]) -> dict[int, Packer]:
    return {stream: PromptRows(self.width) for stream in streams}


class PromptDocuments(ChatDocuments):
  """Prompts as their ids [T]."""

  requires = "prompts"

  def encode_chat(self, document: Prompt) -> Any:
    most = self.reader.width  # type: ignore[attr-defined]
    turns = list(document.messages)
    system = [turns.pop(0)] if turns[0].role == "system" else []
    while len(ids := self.chat.encode([*system, *turns], prompt=True).ids) > most:
      after = next((i for i, message in enumerate(turns) if i and message.role == "user"), None)
      if after is None:
        raise ChatError(f"its last turn has {len(ids):,} tokens, and a prompt {most:,} at most")
      turns = turns[after:]
    return ids, len("".join(self.reader.messages(document)).encode("utf-8"))


class PromptRows:
  """A prompt in each row: inputs, segments and weights, each [L]."""

  def __init__(self, length: int):
    self.length = length

  def row(self, read: ReadDocument, position: Position) -> tuple[Row, Position]:
    row: Row = {key: np.zeros(self.length, np.int32) for key in ("inputs", "segments")}
    row |= {"weights": np.zeros(self.length, np.float32), "bytes": np.float64(0)}
    number, size, ids = position[0], 0, np.zeros(0, np.int32)
    while not len(ids):
      try:
        ids, size = read(number)
      except IndexError:
        return row, position
      number += 1
    own = slice(self.length - len(ids), None)
    row["inputs"][own], row["segments"][own], row["weights"][own] = ids, 1, 1
    return row | {"bytes": np.float64(size)}, (number, 0)
