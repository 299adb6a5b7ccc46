"""SentencePairRows of sentences with hidden words: what BERT is pretrained on (Devlin et al., 2019, appendix A.2).

Rows are made anew every time a document is read: words are hidden differently in every epoch, unless asked otherwise.
"""

import dataclasses
import re
import zlib
from collections.abc import Iterable
from typing import Any

import numpy as np

from lmjax.data.packing import Packer, Position, ReadDocument, Row
from lmjax.data.pipeline import Reader
from lmjax.data.sources.base import BadRecord, Encoded, Source
from lmjax.data.streams import Documents
from lmjax.data.tokenizers.base import Tokenizer
from lmjax.data.tokenizers.subword import WordPiece
from lmjax.utils.errors import UserError

ENDS = re.compile(r"(?<=[.!?])[\"'”’)\]]*\s+(?=[\"'“‘(\[]*[A-Z0-9])")


def sentences(text: str) -> list[str]:
  """Returns the sentences of a text: at ends of sentences, where a capital follows, and at empty lines."""
  blocks = (" ".join(block.split()) for block in re.split(r"\n\s*\n", text))
  return [sentence for block in blocks for sentence in ENDS.split(block) if sentence.strip()]


def lines(text: str) -> list[str]:
  """Returns the lines of a text, for files with a sentence a line."""
  return [line for line in text.splitlines() if line.strip()]


SPLITS = {"sentences": sentences, "lines": lines}


@dataclasses.dataclass(frozen=True)
class SentencePairs(Reader):
  """Rows [CLS] A [SEP] B [SEP], in half of which B does not follow A, with words to be found again.

  max_predictions: words to find in a row, at most; mask_rate: their share. Of them 80 % become [MASK], 10 % another
  word, 10 % stay. whole_words: all pieces of a word are hidden together. dynamic: a new draw in every epoch; else the
  same cuts and places, though a random B is still another one. next_sentence: False gives single stretches of sentences
  (RoBERTa). negatives: where a B that does not follow comes from, another `document` or elsewhere in the
  `same_document`. short_seq_prob: share of rows that are shorter than they could be. split_by: how a document is cut,
  into `sentences` or `lines`.
  """

  max_predictions: int = 20
  mask_rate: float = 0.15
  next_sentence: bool = True
  negatives: str = "document"
  short_seq_prob: float = 0.1
  whole_words: bool = False
  dynamic: bool = True
  split_by: str = "sentences"

  def __post_init__(self):
    super().__post_init__()
    if self.split_by not in SPLITS or self.negatives not in ("document", "same_document"):
      raise ValueError(f"split_by is one of {', '.join(SPLITS)}, negatives is document or same_document")
    if not 0 < self.mask_rate < 1 or not 0 <= self.short_seq_prob <= 1 or self.max_predictions < 1 or self.length < 8:
      raise ValueError(
        "mask_rate lies between 0 and 1, short_seq_prob from 0 to 1; at least 1 prediction and 8 tokens a row"
      )

  def shared(self) -> dict[str, Any]:
    return {"max_predictions": self.max_predictions, "next_sentence": self.next_sentence}

  def integers(self, training: bool) -> int:
    return 3  # document, sentence, rows made

  def documents(self, source: Source, tokenizer: Tokenizer, seed: int | None, streams: int) -> Documents:
    if not isinstance(tokenizer, WordPiece):
      raise UserError(
        "data.tokenizer: sentence pairs need [CLS], [SEP] and [MASK]: algorithm=wordpiece, or a vocab.txt"
      )
    return Sentences(source, tokenizer, seed, streams, self.split_by)

  def packers(self, documents: Documents, streams: Iterable[int]) -> dict[int, Packer]:
    return {stream: SentencePairRows(self, documents, stream) for stream in streams}


class Sentences(Documents):
  """Documents as lists of sentences, each the ids of its pieces."""

  def __init__(self, source: Source, tokenizer: Tokenizer, seed: int | None, streams: int, split_by: str):
    super().__init__(source, tokenizer, seed, streams)
    self.split_by = split_by

  def encode(self, document: str | Encoded | BadRecord) -> tuple[list[np.ndarray], int] | BadRecord:
    if isinstance(document, Encoded):
      raise UserError("data: prepared ids have no sentences; give the text itself")
    if isinstance(document, BadRecord):
      return document
    found = [np.array(ids, np.int32) for ids in self.tokenizer.encode_many(SPLITS[self.split_by](document))]
    return [ids for ids in found if len(ids)], len(document.encode("utf-8"))


class SentencePairRows:
  """Makes the rows of one stream. Position: document, sentence in it, and rows made so far, which seeds the draws."""

  def __init__(self, settings: SentencePairs, documents: Documents, stream: int):
    self.settings, self.stream = settings, stream
    self.length = settings.length
    self.seed = documents.seed or 0
    self.others = len(documents.source)  # documents to draw another from
    tokenizer = documents.tokenizer
    self.size, self.start, self.end, self.mask = tokenizer.size, tokenizer.start, tokenizer.end, tokenizer.mask
    self.continues = np.array([tokenizer.token(i).startswith("##") for i in range(tokenizer.size)])

  def row(self, read: ReadDocument, position: Position) -> tuple[Row, Position]:
    document, first, made = position
    try:
      while first >= len(read(document)[0]):
        document, first = document + 1, 0
    except IndexError:  # behind the end of a single pass
      return self._fill([], [], 0, np.random.default_rng(0)), position
    text, _ = read(document)
    draw = [made] if self.settings.dynamic else [first, zlib.crc32(text[first].tobytes())]
    rng = np.random.default_rng([self.seed, self.stream if self.settings.dynamic else 0, *draw])
    a, b, random, after = self._pair(read, text, first, rng)
    return self._fill(a, b, random, rng), (document, after, made + 1)

  def _pair(self, read: ReadDocument, text: list[np.ndarray], first: int, rng):
    """Returns A, B, 1 if B is random or 0 if it follows, and the sentence after what was used."""
    room = self.length - (3 if self.settings.next_sentence else 2)
    target = int(rng.integers(2, room + 1)) if rng.random() < self.settings.short_seq_prob else room
    last, size = first, 0
    while last < len(text) and size < target:
      size += len(text[last])
      last += 1
    if not self.settings.next_sentence:
      return np.concatenate(text[first:last])[:room].tolist(), [], 0, last
    cut = first + (int(rng.integers(1, last - first)) if last - first > 1 else 1)
    a = np.concatenate(text[first:cut])
    if last - first > 1 and rng.random() < 0.5:
      b, random = np.concatenate(text[cut:last]), 0
    else:
      b, random, last = self._elsewhere(read, text, cut, target - len(a), rng), 1, cut
    a, b = _shorten(a.tolist(), b.tolist(), room, rng)
    return a, b, random, last

  def _elsewhere(self, read: ReadDocument, text: list[np.ndarray], cut: int, wanted: int, rng) -> np.ndarray:
    """Returns sentences that do not follow: of another document, or from another place of this one."""
    other, starts = text, [i for i in range(len(text)) if i != cut]
    if self.settings.negatives == "document" and self.others > 1:
      for _ in range(10):
        found = read(int(rng.integers(0, self.others)))[0]
        if found and not (len(found) == len(text) and np.array_equal(found[0], text[0])):  # not this one again
          other, starts = found, range(len(found))
          break
    start = int(rng.choice(starts)) if len(starts) else 0
    taken, size = [], 0
    while start < len(other) and size < max(wanted, 1):
      taken.append(other[start])
      start, size = start + 1, size + len(other[start])
    return np.concatenate(taken)

  def _fill(self, a: list[int], b: list[int], random: int, rng) -> Row:
    """Returns the row of A and B, some of their words hidden; all padding without A."""
    keys, places = ("inputs", "token_types", "positions", "segments"), self.settings.max_predictions
    row = {key: np.zeros(self.length, np.int32) for key in keys}
    row |= {"masked_positions": np.zeros(places, np.int32), "labels": np.zeros(places, np.int32)}
    row |= {"weights": np.zeros(places, np.float32), "bytes": np.float64(0)}
    if self.settings.next_sentence:
      row["next_sentence_label"] = np.int32(random)
    if not a:
      return row
    ids = np.array([self.start, *a, self.end, *b, *([self.end] if b else [])], np.int32)
    row["token_types"][len(a) + 2 : len(ids)] = 1
    row["positions"][: len(ids)] = np.arange(len(ids))
    row["segments"][: len(ids)] = 1
    chosen = self._choose(ids, len(a), rng)
    row["masked_positions"][: len(chosen)] = chosen
    row["labels"][: len(chosen)] = ids[chosen]
    row["weights"][: len(chosen)] = 1
    u = rng.random(len(chosen))
    words = rng.integers(0, self.size, len(chosen))
    ids[chosen] = np.where(u < 0.8, self.mask, np.where(u < 0.9, words, ids[chosen]))
    row["inputs"][: len(ids)] = ids
    return row

  def _choose(self, ids: np.ndarray, first: int, rng) -> np.ndarray:
    """Returns the places to predict, in order: 15 % of the row, at least one, no [CLS] or [SEP]."""
    count = min(self.settings.max_predictions, max(1, round(len(ids) * self.settings.mask_rate)))
    places = [i for i in range(1, len(ids)) if i != first + 1 and i != len(ids) - 1]
    words: list[list[int]] = []
    for place in places:
      if self.settings.whole_words and words and words[-1][-1] == place - 1 and self.continues[ids[place]]:
        words[-1].append(place)
      else:
        words.append([place])
    chosen: list[int] = []
    for i in rng.permutation(len(words)):
      if len(chosen) + len(words[i]) <= count:
        chosen += words[i]
      if len(chosen) == count:
        break
    return np.array(sorted(chosen or words[0][:count]), np.int64)


def _shorten(a: list[int], b: list[int], room: int, rng) -> tuple[list[int], list[int]]:
  """Returns the pair with the longer one cut, at its front or its back, until both fit."""
  while len(a) + len(b) > room:
    longer = a if len(a) > len(b) else b
    del longer[0 if rng.random() < 0.5 else -1]
  return a, b
