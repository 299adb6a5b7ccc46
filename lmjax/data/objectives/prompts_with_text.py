"""Rows of prompts, each with a row of the text of pretraining, for PPO-ptx."""

import dataclasses
from collections.abc import Iterable
from typing import Any, ClassVar

from lmjax.data.concatenate import Concatenate
from lmjax.data.documents import Documents
from lmjax.data.objectives.prompts import PromptDocuments, PromptRows, Prompts
from lmjax.data.packer import Document, Packer, Position, ReadDocument, Row
from lmjax.data.sources.base import BadRecord, Source
from lmjax.data.tokenizers.base import Tokenizer


@dataclasses.dataclass(frozen=True)
class PromptsWithText(Prompts):
  """Prompts as in `Prompts`, and beside each in training `length` tokens of text, of documents one after the other.

  The keys of text are those of `objectives.causal` after `pretraining_`. text: its source, which streams read as they
  do prompts.
  """

  text: Source = dataclasses.field(kw_only=True)
  debug_text: ClassVar[str] = "lmjax.data.sources.python_docs:PythonDocs"

  @classmethod
  def debug(cls, settings: dict[str, Any]) -> dict[str, Any]:
    return super().debug(settings) | {"text": {"kind": cls.debug_text, "split": ":5%"}}

  def shared(self, tokenizer: Tokenizer | None = None) -> dict[str, Any]:
    return super().shared(tokenizer) | {"text_tokens": self.length}

  def position_size(self, training: bool) -> int:
    return 4 if training else 2

  def documents(self, source: Source, tokenizer: Tokenizer, seed: int | None, streams: int) -> Documents:
    if seed is None:
      return super().documents(source, tokenizer, seed, streams)
    text = Documents(self.text, tokenizer, seed, streams)
    text.check_tokenizer()
    return DocumentsWithText(self, source, tokenizer, seed, streams, text)

  def packers(self, documents: Documents, streams: Iterable[int]) -> dict[int, Packer]:
    if not isinstance(documents, DocumentsWithText):
      return super().packers(documents, streams)
    return {stream: PromptAndTextRows(self.width, self.length) for stream in streams}


class DocumentsWithText(PromptDocuments):
  """Documents of which those of even number are prompts and those of odd number texts."""

  def __init__(self, reader: Prompts, source: Source, tokenizer: Tokenizer, seed: int, streams: int, text: Documents):
    super().__init__(reader, source, tokenizer, seed, streams)
    self.text = text

  def read(self, stream: int, number: int) -> Document | BadRecord:
    return self.text.read(stream, number // 2) if number % 2 else super().read(stream, number // 2)


class PromptAndTextRows:
  """A prompt and a row of text. Position: that of the prompts, then that of the text."""

  def __init__(self, width: int, length: int):
    self.length, self.prompts, self.text = width, PromptRows(width), Concatenate(length)

  def row(self, read: ReadDocument, position: Position) -> tuple[Row, Position]:
    prompt, after = self.prompts.row(lambda number: read(2 * number), position[:2])
    text, text_after = self.text.row(lambda number: read(2 * number + 1), position[2:])
    own = {f"pretraining_{key}": value for key, value in text.items() if key != "bytes"}
    return prompt | own, after + text_after
