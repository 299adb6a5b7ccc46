"""Texts as the input of a model of any kind: what differs between families on one downstream task.

encoder: [CLS] A [SEP] B [SEP], with token types. decoder: start A delimiter B extract, for symmetric pairs in both
orders (Radford et al., 2018). encoder-decoder: A end B end. bidirectional LM: `<S>` A `</S>` B `</S>` as characters.
A pair may also be read apart, as two segments that do not see each other.
"""

import dataclasses
import functools
from collections.abc import Sequence

import numpy as np

from lmjax.data.packer import Row
from lmjax.data.tokenizers.base import Tokenizer, ends_of
from lmjax.data.tokenizers.bpe import BPE
from lmjax.data.tokenizers.special import A, Template, template, template_of
from lmjax.data.tokenizers.spelling import spell
from lmjax.data.tokenizers.subword import WordPiece
from lmjax.data.tokenizers.words import Words
from lmjax.utils.errors import UserError


@dataclasses.dataclass(frozen=True)
class Arrangement:
  """Makes the rows of a model of a kind; see the module.

  length: tokens of a row at most. delimiter: text between the two of a pair, for decoders; by default the end token.
  symmetric: whether decoders read a pair in both orders, each in half of the row. characters: of a word, at most.
  apart: whether the texts of a pair are two segments, each in half of the row.
  """

  kind: str
  tokenizer: Tokenizer
  length: int
  delimiter: str = ""
  symmetric: bool = False
  characters: int = 50
  apart: bool = False

  def __post_init__(self):
    if self.kind == "bidirectional_lm" and not isinstance(self.tokenizer, Words):
      raise UserError(
        "data.tokenizer: a model that reads characters needs data.tokenizer.kind="
        "lmjax.data.tokenizers.words:WordTokenizerConfig"
      )

  @functools.cached_property
  def template(self) -> Template:
    """What surrounds the texts."""
    tokenizer = self.tokenizer
    if self.kind == "bidirectional_lm":
      return template([tokenizer.start], [tokenizer.end], [tokenizer.end], second=1)
    if self.kind != "decoder":
      return template_of(tokenizer, self.kind)
    start = [] if tokenizer.start is None else [tokenizer.start]
    extract = list(ends_of(tokenizer)[:1])
    return template(start, tokenizer.encode(self.delimiter) if self.delimiter else extract, extract)

  def __call__(self, text: str, other: str | None = None) -> Row:
    """Returns a row without padding, of arrays [T].

    inputs, token_types, positions, segments (the orders of a pair, or its texts apart, from 1), targets and weights (of
    the next token); and `characters` [T, C] for a model that reads them.

    Raises:
      UserError: `length` leaves no space for the texts.
    """
    first, second = (None if part is None else self.pieces(part) for part in (text, other))
    orders = [(first, second)]
    if self.apart and second is not None:
      orders = [(first, None), (second, None)]
    elif self.symmetric and self.kind == "decoder" and second is not None:
      orders.append((second, first))
    rows = [self.row(a, b, self.length // len(orders), number) for number, (a, b) in enumerate(orders, 1)]
    return {key: np.concatenate([row[key] for row in rows]) for key in rows[0]}

  def words(self, words: Sequence[str]) -> tuple[Row, list[int]]:
    """Returns the row of a sentence of words, and the place of each word's first token; -1 where it has none."""
    spaced = not isinstance(self.tokenizer, WordPiece) and isinstance(self.tokenizer, BPE)
    pieces: list = []
    first = []
    for i, word in enumerate(words):
      ids = [word] if isinstance(self.tokenizer, Words) else self.tokenizer.encode(" " * (spaced and i > 0) + word)
      first.append(len(pieces) if len(ids) else -1)
      pieces += list(ids)
    start = next(i for i, (piece, _) in enumerate(self.template.single) if piece == A)
    space = self.length - self.template.added()
    row = self.row(pieces)
    return row, [start + place if 0 <= place < space else -1 for place in first]

  def pieces(self, text: str) -> list:
    """Returns the ids of a string; for a model that reads characters, its words."""
    if isinstance(self.tokenizer, Words):
      return [word for word in self.tokenizer.words(text) if word != "\n"]
    return list(self.tokenizer.encode(text))

  def row(self, first: list, second: list | None = None, length: int | None = None, segment: int = 1) -> Row:
    """Returns the row of one text or of two, given as their pieces, of at most `length` tokens."""
    first, second, length = list(first), None if second is None else list(second), length or self.length
    space = length - self.template.added(second is not None)
    if space < 1:
      raise UserError(f"data.length: {self.length} tokens leave no space for text beside the special tokens")
    while len(first) + len(second or ()) > space:  # the longer one loses its last token
      (second if second is not None and len(second) >= len(first) else first).pop()
    words = [*first, *(second or ())]
    tokenizer, extra = self.tokenizer, {}
    if isinstance(tokenizer, Words):
      first = tokenizer.ids(first)
      second = None if second is None else tokenizer.ids(second)
    whole = self.template.apply(first, second)
    size = len(whole.ids)
    if self.kind == "bidirectional_lm":
      assert isinstance(tokenizer, Words)
      extra = {"characters": _characters(whole.ids, words, tokenizer, self.characters)}
    row: Row = {
      "inputs": np.array(whole.ids, np.int32),
      "token_types": np.array(whole.token_types, np.int32),
      "positions": np.arange(size, dtype=np.int32),
      "segments": np.full(size, segment, np.int32),
      "targets": np.array([*whole.ids[1:], 0], np.int32),
      "weights": np.arange(size - 1, -1, -1).clip(0, 1).astype(np.float32),
    }
    return row | extra


def _characters(ids: list[int], words: list[str], tokenizer: Words, characters: int) -> np.ndarray:
  """Returns the characters [T, C] of words, and of the special tokens around them."""
  special, rest = {tokenizer.start, tokenizer.end}, iter(words)
  return np.stack([spell(tokenizer.vocabulary[i] if i in special else next(rest), characters) for i in ids])


def pad(row: Row, length: int) -> Row:
  """Returns a row whose arrays [T, ...] are padded with zeros, or truncated, to `length`."""
  padded: Row = {}
  for key, value in row.items():
    values = np.asarray(value)
    padded[key] = filled = np.zeros((length, *values.shape[1:]), values.dtype)
    filled[: len(values)] = values[:length]
  return padded
