"""Rows of comparisons for reward models that are encoders or encoder-decoders."""

import dataclasses
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from lmjax.data.chat.format import ChatIds
from lmjax.data.documents import Documents
from lmjax.data.first_fit import GROUP_ROWS, FirstFit
from lmjax.data.objectives.preferences import PreferenceDocuments, Preferences
from lmjax.data.packer import Document, Packer, Row
from lmjax.data.sources.base import Source
from lmjax.data.tokenizers.base import Tokenizer


def reader_for(reader: Preferences, kind: str) -> Preferences:
  """Returns the reader that makes rows for a kind of models."""
  settings = {field.name: getattr(reader, field.name) for field in dataclasses.fields(reader)}
  return {"encoder": EncoderPreferences, "encoder_decoder": PairPreferences}[kind](**settings)


@dataclasses.dataclass(frozen=True)
class EncoderPreferences(Preferences):
  """Rows as of `Preferences`, where each answer's segment begins with the start token ([CLS])."""

  def shared(self, tokenizer: Tokenizer | None = None) -> dict[str, Any]:
    return super().shared(tokenizer) | {"start": 0 if tokenizer is None else tokenizer.start}

  def documents(self, source: Source, tokenizer: Tokenizer, seed: int | None, streams: int) -> Documents:
    documents = PreferenceDocuments(self, source, tokenizer, seed, streams)
    documents.before = (tokenizer.start,)
    return documents


@dataclasses.dataclass(frozen=True)
class PairPreferences(Preferences):
  """Groups of answers whose prompts are sources and which themselves are targets, of `length` tokens a row each.

  Of the targets, each answer follows the start token, and its last token has no target.
  """

  def shared(self, tokenizer: Tokenizer | None = None) -> dict[str, Any]:
    return super().shared(tokenizer) | {"target_length": self.length}

  def packers(self, documents: Documents, streams: Iterable[int]) -> dict[int, Packer]:
    start = documents.tokenizer.start
    return {stream: PairPreferenceRows(self.length, self.answers, self.groups, start) for stream in streams}


class PairPreferenceRows(FirstFit):
  """Groups of answers by first fit, over the tokens of prompts and of answers, and the number of groups."""

  def __init__(self, length: int, answers: int, groups: int, start: int):
    super().__init__((length, length, groups), max_tokens=GROUP_ROWS * length)
    self.answers, self.start = answers, start

  def items(self, document: Document) -> Iterable[tuple[Sequence[int], Any]]:
    content, size = document
    if len(content):
      sides = [_sides(own, self.start) for own in content]
      yield (sum(len(source) for source, _ in sides), sum(len(target) - 1 for _, target in sides), 1), (sides, size)

  def fill(self, items: list[tuple[list[tuple[np.ndarray, np.ndarray]], float]]) -> Row:
    keys = ("inputs", "positions", "segments", "targets", "decoder_inputs", "decoder_positions", "decoder_segments")
    row: Row = {key: np.zeros(self.length, np.int32) for key in keys}
    row["weights"], filled = np.zeros(self.length, np.float32), [0, 0]
    for group, (sides, _) in enumerate(items):
      for number, (source, target) in enumerate(sides, 1 + group * self.answers):
        for side, (part, ids) in enumerate({"": source, "decoder_": target[:-1]}.items()):
          own = slice(filled[side], filled[side] + len(ids))
          row[f"{part}inputs"][own], row[f"{part}positions"][own] = ids, np.arange(len(ids))
          row[f"{part}segments"][own], filled[side] = number, own.stop
        row["targets"][own] = target[1:]
        row["weights"][own.start : own.stop - 1] = 1
    return row | {"bytes": np.float64(sum(size for _, size in items))}


def _sides(encoded: ChatIds, start: int) -> tuple[np.ndarray, np.ndarray]:
  """Returns the ids of a prompt, and those of its answer between the start token and one without weight."""
  ids, answer = encoded
  first = int(np.argmax(answer))
  return ids[:first], np.concatenate([[start], ids[first:]]).astype(np.int32)
