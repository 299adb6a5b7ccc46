"""Rows of answers to the same prompts, of which some are better than others."""

import dataclasses
from collections.abc import Iterable, Sequence
from typing import Any, ClassVar

import numpy as np

from lmjax.data.chat.format import ASSISTANT, ChatIds
from lmjax.data.chat.template import ChatError, Message
from lmjax.data.documents import Documents
from lmjax.data.first_fit import GROUP_ROWS, FirstFit
from lmjax.data.objectives.chats import ChatDocuments, Chats, last, place, shorten
from lmjax.data.packer import Document, Packer, Row
from lmjax.data.sources.base import Source
from lmjax.data.sources.preferences import Preference
from lmjax.data.tokenizers.base import Tokenizer
from lmjax.utils import names
from lmjax.utils.errors import UserError


@dataclasses.dataclass(frozen=True)
class Preferences(Chats):
  """Groups of answers to a prompt by first fit, each answer after the prompt in a segment of its own.

  Answer k of group g of a row, from the best, has the segment g * answers + k + 1; the loss weight is 1 on its tokens
  and on its end of turn. A prompt with an answer has length / answers tokens at most: the oldest turns of a longer one
  are left out, then the end of the answer (see `chats.shorten`).

  answers: of a group, at most. groups: of a row, at most.
  """

  answers: int = 2
  groups: int = 4
  debug_source: ClassVar[str] = "lmjax.data.sources.python_preferences:PythonDocPreferences"

  def __post_init__(self):
    super().__post_init__()
    if self.answers < 2 or self.groups < 1:
      raise ValueError("a group has two answers at least, and a row one group at least")

  def shared(self, tokenizer: Tokenizer | None = None) -> dict[str, Any]:
    return {"answers": self.answers, "groups": self.groups}

  def for_model(self, model: Any) -> "Preferences":
    if model.kind == "decoder":
      return self
    reader: Preferences = names.load("lmjax.data.objectives.preferences_by_kind:reader_for")(self, model.kind)
    return reader

  def messages(self, document: Any) -> Sequence[str]:
    if not isinstance(document, Preference):
      raise UserError("data: the rows need preferences: use a source of lmjax.data.sources.preferences")
    return [*(message.content for message in document.prompt), *document.answers]

  def documents(self, source: Source, tokenizer: Tokenizer, seed: int | None, streams: int) -> Documents:
    return PreferenceDocuments(self, source, tokenizer, seed, streams)

  def packers(self, documents: Documents, streams: Iterable[int]) -> dict[int, Packer]:
    return {stream: PreferenceRows(self.length, self.answers, self.groups) for stream in streams}


class PreferenceDocuments(ChatDocuments):
  """Preferences as their prompts with each answer: ids [T], and which of them are the answer [T].

  before: ids that come first.
  """

  requires = "preferences"
  before: tuple[int, ...] = ()

  def encode_chat(self, document: Preference) -> Any:
    most = self.reader.answers  # type: ignore[attr-defined]
    if len(document.answers) > most:
      raise ChatError(f"it has {len(document.answers)} answers, and a group of the run {most} at most")

    def encode(prompt: Sequence[Message]) -> list[ChatIds]:
      return [last(self.chat.encode([*prompt, Message(ASSISTANT, answer)])) for answer in document.answers]

    length, before = self.reader.length // most - len(self.before), len(self.before)
    encoded = shorten(document.prompt, encode, length - 1)
    if len({ids.tobytes() for ids, _ in encoded}) < len(encoded):
      raise ChatError(f"its answers are the same in their first {length:,} tokens")
    # One more target, without weight, so that the model reads the last token: a reward model scores its vector.
    read = [
      ChatIds(np.concatenate([self.before, ids, [0]]).astype(np.int32), np.pad(answer, (before, 1)))
      for ids, answer in encoded
    ]
    return read, len("".join(document.answers).encode("utf-8"))


class PreferenceRows(FirstFit):
  """Groups of answers by first fit, over the tokens and the number of groups."""

  def __init__(self, length: int, answers: int, groups: int):
    super().__init__((length, groups), max_tokens=GROUP_ROWS * length)
    self.answers = answers

  def items(self, document: Document) -> Iterable[tuple[Sequence[int], Any]]:
    content, size = document
    if len(content):
      yield (sum(len(own[0]) - 1 for own in content), 1), (content, size)

  def fill(self, items: list[tuple[list[ChatIds], float]]) -> Row:
    numbered = (
      (group * self.answers + k, own) for group, (content, _) in enumerate(items) for k, own in enumerate(content, 1)
    )
    return place(numbered, self.length) | {"bytes": np.float64(sum(size for _, size in items))}
