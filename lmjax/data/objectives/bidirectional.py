"""Text for a bidirectional language model: spelt words, forwards and backwards."""

import dataclasses
from collections.abc import Iterable
from typing import Any

import numpy as np

from lmjax.data.objectives.masked_lm import SPLITS
from lmjax.data.packing import Packer, Position, ReadDocument, Row
from lmjax.data.pipeline import Reader
from lmjax.data.sources.base import BadRecord, Encoded, Source
from lmjax.data.streams import Documents
from lmjax.data.tokenizers.base import Tokenizer
from lmjax.data.tokenizers.words import Words, spell
from lmjax.utils.errors import UserError


@dataclasses.dataclass(frozen=True)
class BidirectionalText(Reader):
  """Sentences `<S> ... </S>` one after the other; a row of one stream goes on where its last one ended.

  A row reads some words of a document forwards, and as many of the same document, from its end, backwards.
  characters: of a word, at most. split_by: how a document is cut, into `sentences` or `lines`.
  """

  characters: int = 50
  split_by: str = "sentences"

  def __post_init__(self):
    super().__post_init__()
    if self.split_by not in SPLITS or self.characters < 4:
      raise ValueError(f"split_by is one of {', '.join(SPLITS)}, characters at least 4")

  def shared(self) -> dict[str, Any]:
    return {"characters": self.characters}

  def documents(self, source: Source, tokenizer: Tokenizer, seed: int | None, streams: int) -> Documents:
    if not isinstance(tokenizer, Words):
      raise UserError("data.tokenizer: spelt words need tokenizer.kind=lmjax.data.tokenizers.words:WordTokenizerConfig")
    return CharacterDocuments(source, tokenizer, seed, streams, self.characters, self.split_by)

  def packers(self, documents: Documents, streams: Iterable[int]) -> dict[int, Packer]:
    return {stream: BidirectionalRows(self.length, self.characters) for stream in streams}


class CharacterDocuments(Documents):
  """Documents as what is read and what comes next, forwards and backwards."""

  def __init__(self, source: Source, tokenizer: Words, seed: int | None, streams: int, characters: int, split_by: str):
    super().__init__(source, tokenizer, seed, streams)
    self.characters, self.split_by = characters, split_by

  def encode(self, document: str | Encoded | BadRecord) -> tuple[list[np.ndarray], int] | BadRecord:
    """Returns [characters [T, C], targets [T], and the same backwards], and the bytes of the text."""
    if isinstance(document, Encoded):
      raise UserError("data: prepared ids have no spelling; give the text itself")
    if isinstance(document, BadRecord):
      return document
    cut = [self.tokenizer.words(sentence) for sentence in SPLITS[self.split_by](document)]
    start, end = (self.tokenizer.vocabulary[i] for i in (self.tokenizer.start, self.tokenizer.end))
    around = [[start, *sentence, end] for sentence in cut if sentence]
    if not around:
      return [], 0
    read, following = _steps(around)
    back = [sentence[::-1] for sentence in reversed(around)]
    found = [*self._row(read, following), *self._row(*_steps(back))]
    return found, len(document.encode("utf-8"))

  def _row(self, read: list[str], following: list[str]) -> tuple[np.ndarray, np.ndarray]:
    ids = self.tokenizer.ids(following)
    return np.stack([spell(word, self.characters) for word in read]), np.array(ids, np.int32)


def _steps(sentences: list[list[str]]) -> tuple[list[str], list[str]]:
  """Returns every word but the last of each sentence, and the word after it."""
  return [w for s in sentences for w in s[:-1]], [w for s in sentences for w in s[1:]]


class BidirectionalRows:
  """Packs documents one after the other. Position: the document to read next, and how many of its words are used up."""

  KEYS = ("characters", "targets", "reverse_characters", "reverse_targets")

  def __init__(self, length: int, characters: int):
    self.length = length
    self.shapes = {"characters": (length, characters), "targets": (length,)}

  def row(self, read: ReadDocument, position: Position) -> tuple[Row, Position]:
    row = {key: np.zeros(self.shapes[key.removeprefix("reverse_")], np.int32) for key in self.KEYS}
    row |= {"weights": np.zeros(self.length, np.float32), "bytes": np.float64(0)}
    filled, (document, used) = 0, position
    while filled < self.length:
      try:
        found, size = read(document)
      except IndexError:
        break
      words = len(found[1]) if found else 0
      taken = min(self.length - filled, words - used)
      for key, array in zip(self.KEYS, found, strict=False):
        row[key][filled : filled + taken] = array[used : used + taken]
      row["weights"][filled : filled + taken] = 1
      row["bytes"] += size * taken / max(words, 1)
      filled, used = filled + taken, used + taken
      if used >= words:
        document, used = document + 1, 0
    return row, (document, used)
