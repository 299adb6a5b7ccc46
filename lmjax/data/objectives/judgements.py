"""Rows of answers that are desirable or not, beside answers to other prompts."""

import dataclasses
from collections.abc import Iterable, Sequence
from typing import Any, ClassVar

import numpy as np

from lmjax.data.chat.format import ASSISTANT, ChatIds
from lmjax.data.chat.template import Message
from lmjax.data.documents import Documents
from lmjax.data.first_fit import GROUP_ROWS, FirstFit
from lmjax.data.objectives.chats import ChatDocuments, Chats, last, place, shorten
from lmjax.data.packer import Document, Packer, Row
from lmjax.data.sources.base import Source
from lmjax.data.sources.judgements import Judgement
from lmjax.data.tokenizers.base import Tokenizer
from lmjax.utils.errors import UserError


@dataclasses.dataclass(frozen=True)
class Judgements(Chats):
  """Answers after their prompts by first fit, and each prompt again before an answer to another one of the row.

  Answer g of a row has the segment 2 g + 1, and its prompt before another prompt's answer 2 g + 2; the loss weight is 1
  on the tokens of answers and on their ends of turn, and `tags` is 1 on those of desirable answers. A row with answers
  to one prompt alone has no mismatched ones. A prompt with its answer has length / 2 tokens at most: the oldest turns
  of a longer one are left out, then the end of the answer (see `chats.shorten`).

  groups: judged answers of a row, at most.
  """

  groups: int = 4
  debug_source: ClassVar[str] = "lmjax.data.sources.python_judgements:PythonDocJudgements"

  @classmethod
  def debug(cls, settings: dict[str, Any]) -> dict[str, Any]:
    return super().debug(settings) | {"length": 192}

  def shared(self, tokenizer: Tokenizer | None = None) -> dict[str, Any]:
    return {"groups": self.groups}

  def messages(self, document: Any) -> Sequence[str]:
    if not isinstance(document, Judgement):
      raise UserError("data: the rows need judged answers: use a source of lmjax.data.sources.judgements")
    return [*(message.content for message in document.prompt), *document.answers]

  def documents(self, source: Source, tokenizer: Tokenizer, seed: int | None, streams: int) -> Documents:
    return JudgementDocuments(self, source, tokenizer, seed, streams)

  def packers(self, documents: Documents, streams: Iterable[int]) -> dict[int, Packer]:
    return {stream: JudgementRows(self.length, self.groups) for stream in streams}


Judged = dict[str, Any]  # `inputs`, a prompt and an answer; `start` of the answer; if `desirable`; its UTF-8 `bytes`


class JudgementDocuments(ChatDocuments):
  """Judgements as a list of a `Judged` for each answer."""

  requires = "judged answers"

  def encode_chat(self, document: Judgement) -> Any:
    def encode(prompt: Sequence[Message]) -> list[ChatIds]:
      return [last(self.chat.encode([*prompt, Message(ASSISTANT, answer)])) for answer in document.answers]

    sizes = [len(answer.encode("utf-8")) for answer in document.answers]
    encoded = shorten(document.prompt, encode, self.reader.length // 2)
    judged = [
      dict(inputs=ids, start=int(np.argmax(own)), desirable=desirable, bytes=size)
      for (ids, own), desirable, size in zip(encoded, document.desirable, sizes, strict=True)
    ]
    return judged, sum(sizes)


class JudgementRows(FirstFit):
  """Judged answers by first fit, over the tokens, twice of each, and the number of answers."""

  def __init__(self, length: int, groups: int):
    super().__init__((length, groups), max_tokens=GROUP_ROWS * length)

  def items(self, document: Document) -> Iterable[tuple[Sequence[int], Any]]:
    return (((2 * (len(own["inputs"]) - 1), 1), own) for own in document[0])

  def fill(self, items: list[Judged]) -> Row:
    prompts = [own["inputs"][: own["start"]] for own in items]
    answers = [own["inputs"][own["start"] :] for own in items]

    def others(shift: int) -> list[tuple[int, int]]:
      """Returns each answer with that `shift` places on, where this is one to another prompt."""
      pairs = ((i, (i + shift) % len(items)) for i in range(len(items)))
      return [(i, j) for i, j in pairs if not np.array_equal(prompts[i], prompts[j])]

    # Prompts with the answers of others have as many tokens together as with their own, wherever these are moved.
    moved = max(map(others, range(1, len(items))), key=len, default=[])
    numbered = [(2 * i + 1, i, i) for i in range(len(items))] + [(2 * i + 2, i, j) for i, j in moved]
    joined = ((n, np.concatenate([prompts[i], answers[j]]), len(prompts[i])) for n, i, j in sorted(numbered))
    row = place(((n, (ids, np.arange(len(ids)) >= start)) for n, ids, start in joined), self.length)
    desirable = [2 * i + 1 for i, own in enumerate(items) if own["desirable"]]
    row["tags"] = np.isin(row["segments"], desirable).astype(np.int32)
    return row | {"bytes": np.float64(sum(own["bytes"] for own in items))}
