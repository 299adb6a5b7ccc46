"""Rows for a bidirectional language model: words as characters, left to right and right to left."""

import dataclasses
from collections.abc import Iterable
from typing import Any

import numpy as np

from lmjax.data.documents import Documents
from lmjax.data.objectives.masked_lm import SPLITTERS
from lmjax.data.packer import Document, Packer, Position, ReadDocument, Row
from lmjax.data.pipeline import Reader
from lmjax.data.sources.base import Source
from lmjax.data.tokenizers.base import Tokenizer
from lmjax.data.tokenizers.spelling import spell
from lmjax.data.tokenizers.words import Words
from lmjax.utils.errors import UserError


@dataclasses.dataclass(frozen=True)
class BidirectionalText(Reader):
  """Sentences `<S> ... </S>`, concatenated; a row of a stream continues where the previous one ended.

  A row has some words of a document, read left to right, and as many words of it, read right to left from its end.
  length: words in a row. characters: maximum bytes of a word, with its begin and end marks. split_by: how a document is
  split, into `sentences` or `lines`.
  """

  characters: int = 50
  split_by: str = "sentences"

  def __post_init__(self):
    super().__post_init__()
    if self.split_by not in SPLITTERS or self.characters < 4:
      raise ValueError(f"split_by must be {' or '.join(SPLITTERS)}, and characters at least 4")

  def shared(self, tokenizer: Tokenizer | None = None) -> dict[str, Any]:
    return {"characters": self.characters}

  def documents(self, source: Source, tokenizer: Tokenizer, seed: int | None, streams: int) -> Documents:
    if not isinstance(tokenizer, Words):
      raise UserError(
        "data.tokenizer: BidirectionalText needs data.tokenizer.kind=lmjax.data.tokenizers.words:WordTokenizerConfig"
      )
    return CharacterDocuments(source, tokenizer, seed, streams, self.characters, self.split_by)

  def packers(self, documents: Documents, streams: Iterable[int]) -> dict[int, Packer]:
    return {stream: BidirectionalRows(self.length, self.characters) for stream in streams}


class CharacterDocuments(Documents):
  """Documents as the characters of each word and the id of the next word, in both directions."""

  requires = "the characters of words"
  tokenizer: Words

  def __init__(self, source: Source, tokenizer: Words, seed: int | None, streams: int, characters: int, split_by: str):
    super().__init__(source, tokenizer, seed, streams)
    self.characters, self.split_by = characters, split_by

  def encode_text(self, document: str) -> Document:
    """Returns [characters [T, C], targets [T], both of the reversed document], and the UTF-8 bytes of the text."""
    words = [self.tokenizer.words(sentence) for sentence in SPLITTERS[self.split_by](document)]
    start, end = (self.tokenizer.vocabulary[i] for i in (self.tokenizer.start, self.tokenizer.end))
    sentences = [[start, *sentence, end] for sentence in words if sentence]
    if not sentences:
      return [], 0
    backwards = [sentence[::-1] for sentence in reversed(sentences)]
    return [*self._arrays(sentences), *self._arrays(backwards)], len(document.encode("utf-8"))

  def _arrays(self, sentences: list[list[str]]) -> tuple[np.ndarray, np.ndarray]:
    """Returns the characters of every word but the last of each sentence, and the id of the next word."""
    inputs = [word for sentence in sentences for word in sentence[:-1]]
    targets = [word for sentence in sentences for word in sentence[1:]]
    return np.stack([spell(word, self.characters) for word in inputs]), np.array(self.tokenizer.ids(targets), np.int32)


class BidirectionalRows:
  """Concatenates documents. Position: the document to read next, and how many of its words have been used."""

  KEYS = ("characters", "targets", "reverse_characters", "reverse_targets")

  def __init__(self, length: int, characters: int):
    self.length = length
    self.shapes = {"characters": (length, characters), "targets": (length,)}

  def row(self, read: ReadDocument, position: Position) -> tuple[Row, Position]:
    row: Row = {key: np.zeros(self.shapes[key.removeprefix("reverse_")], np.int32) for key in self.KEYS}
    row |= {"weights": np.zeros(self.length, np.float32), "bytes": np.float64(0)}
    filled, (document, used) = 0, position
    while filled < self.length:
      try:
        arrays, size = read(document)
      except IndexError:
        break
      words = len(arrays[1]) if len(arrays) else 0
      taken = min(self.length - filled, words - used)
      for key, array in zip(self.KEYS, arrays, strict=False):  # an empty document has no arrays
        row[key][filled : filled + taken] = array[used : used + taken]
      row["weights"][filled : filled + taken] = 1
      row["bytes"] += size * taken / max(words, 1)
      filled, used = filled + taken, used + taken
      if used >= words:
        document, used = document + 1, 0
    return row, (document, used)
