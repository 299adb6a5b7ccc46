"""Sentence pairs with masked tokens, on which BERT is pretrained (Devlin et al., 2019, arXiv:1810.04805, appendix A).

Rows are made whenever a document is read, so by default every epoch masks other tokens.
"""

import dataclasses
import re
import zlib
from collections.abc import Iterable
from typing import Any

import numpy as np

from lmjax.data.documents import Documents
from lmjax.data.packer import Document, Packer, Position, ReadDocument, Row
from lmjax.data.pipeline import Reader
from lmjax.data.sources.base import Source
from lmjax.data.tokenizers.base import Tokenizer
from lmjax.data.tokenizers.subword import WordPiece
from lmjax.utils.errors import UserError

SENTENCE_END = re.compile(r"(?<=[.!?])[\"'”’)\]]*\s+(?=[\"'“‘(\[]*[A-Z0-9])")


def sentences(text: str) -> list[str]:
  """Returns the sentences of text, split after `.`, `!` or `?` before a capital or a digit, and at blank lines."""
  blocks = (" ".join(block.split()) for block in re.split(r"\n\s*\n", text))
  return [sentence for block in blocks for sentence in SENTENCE_END.split(block) if sentence.strip()]


def lines(text: str) -> list[str]:
  """Returns the lines that are not blank, for files with one sentence per line."""
  return [line for line in text.splitlines() if line.strip()]


SPLITTERS = {"sentences": sentences, "lines": lines}


@dataclasses.dataclass(frozen=True)
class SentencePairs(Reader):
  """Rows [CLS] A [SEP] B [SEP] with masked tokens; in about half of them B does not follow A.

  max_predictions: maximum number of masked tokens in a row. mask_rate: fraction of the tokens that are masked; 80 % of
  these become [MASK], 10 % a random token, and 10 % stay unchanged. whole_words: mask all tokens of a word together.
  dynamic: mask other tokens in every epoch; with False, the boundaries of pairs and the masked positions stay the same,
  and only a random B changes. next_sentence: False gives rows [CLS] A [SEP] of consecutive sentences (RoBERTa).
  negatives: whether a B that does not follow A comes from another `document`, or from elsewhere in the `same_document`.
  short_seq_prob: fraction of rows that are shortened to a random length. split_by: how a document is split, into
  `sentences` or `lines`.
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
    if self.split_by not in SPLITTERS or self.negatives not in ("document", "same_document"):
      raise ValueError(f"split_by must be {' or '.join(SPLITTERS)}, and negatives document or same_document")
    if not 0 < self.mask_rate < 1 or not 0 <= self.short_seq_prob <= 1 or self.max_predictions < 1 or self.length < 8:
      raise ValueError(
        "mask_rate must be between 0 and 1, short_seq_prob 0 to 1, max_predictions at least 1, and length at least 8"
      )

  def shared(self, tokenizer: Tokenizer | None = None) -> dict[str, Any]:
    return {"max_predictions": self.max_predictions, "next_sentence": self.next_sentence}

  def position_size(self, training: bool) -> int:
    return 3  # document, sentence, rows made

  def documents(self, source: Source, tokenizer: Tokenizer, seed: int | None, streams: int) -> Documents:
    if not isinstance(tokenizer, WordPiece):
      raise UserError(
        "data.tokenizer: sentence pairs need [CLS], [SEP] and [MASK]; set algorithm=wordpiece, or path to a vocab.txt"
      )
    return Sentences(source, tokenizer, seed, streams, self.split_by)

  def packers(self, documents: Documents, streams: Iterable[int]) -> dict[int, Packer]:
    return {stream: SentencePairRows(self, documents, stream) for stream in streams}


class Sentences(Documents):
  """Documents as lists of sentences, each the ids of its tokens."""

  requires = "sentences"
  tokenizer: WordPiece

  def __init__(self, source: Source, tokenizer: Tokenizer, seed: int | None, streams: int, split_by: str):
    super().__init__(source, tokenizer, seed, streams)
    self.split_by = split_by

  def encode_text(self, document: str) -> Document:
    encoded = self.tokenizer.encode_many(SPLITTERS[self.split_by](document))
    return [np.array(ids, np.int32) for ids in encoded if len(ids)], len(document.encode("utf-8"))


class SentencePairRows:
  """Makes the rows of one stream.

  Position: the document, the sentence in it, and the rows made so far, which seed the random choices.
  """

  def __init__(self, settings: SentencePairs, documents: Sentences, stream: int):
    self.settings, self.stream = settings, stream
    self.length = settings.length
    self.seed = documents.seed or 0
    self.num_documents = len(documents.source)  # a random B comes from any of them
    tokenizer = documents.tokenizer
    self.size, self.start, self.end, self.mask = tokenizer.size, tokenizer.start, tokenizer.end, tokenizer.mask
    self.continues_word = np.array([tokenizer.token(i).startswith("##") for i in range(tokenizer.size)])

  def row(self, read: ReadDocument, position: Position) -> tuple[Row, Position]:
    document, first, made = position
    try:
      while first >= len(read(document)[0]):
        document, first = document + 1, 0
    except IndexError:  # after the end of a single pass
      return self._fill([], [], 0, np.random.default_rng(0)), position
    sentences, _ = read(document)
    key = [made] if self.settings.dynamic else [first, zlib.crc32(sentences[first].tobytes())]
    rng = np.random.default_rng([self.seed, self.stream if self.settings.dynamic else 0, *key])
    a, b, random, after = self._pair(read, sentences, first, rng)
    return self._fill(a, b, random, rng), (document, after, made + 1)

  def _pair(
    self, read: ReadDocument, sentences: list[np.ndarray], first: int, rng: np.random.Generator
  ) -> tuple[list[int], list[int], int, int]:
    """Returns A, B, 1 if B is random or 0 if it follows A, and the index of the next sentence to use."""
    space = self.length - (3 if self.settings.next_sentence else 2)
    target = int(rng.integers(2, space + 1)) if rng.random() < self.settings.short_seq_prob else space
    last, size = first, 0
    while last < len(sentences) and size < target:
      size += len(sentences[last])
      last += 1
    if not self.settings.next_sentence:
      return np.concatenate(sentences[first:last])[:space].tolist(), [], 0, last
    boundary = first + (int(rng.integers(1, last - first)) if last - first > 1 else 1)
    a = np.concatenate(sentences[first:boundary])
    if last - first > 1 and rng.random() < 0.5:
      b, random = np.concatenate(sentences[boundary:last]), 0
    else:
      b, random, last = self._random_b(read, sentences, boundary, target - len(a), rng), 1, boundary
    return *_truncate(a.tolist(), b.tolist(), space, rng), random, last

  def _random_b(
    self, read: ReadDocument, sentences: list[np.ndarray], boundary: int, size: int, rng: np.random.Generator
  ) -> np.ndarray:
    """Returns the ids of sentences of another document or from elsewhere in this one: at least `size` if there are."""
    source, starts = sentences, [i for i in range(len(sentences)) if i != boundary]
    if self.settings.negatives == "document" and self.num_documents > 1:
      for _ in range(10):
        other = read(int(rng.integers(0, self.num_documents)))[0]
        is_same = len(other) == len(sentences) and np.array_equal(other[0], sentences[0])
        if len(other) and not is_same:
          source, starts = other, range(len(other))
          break
    start = int(rng.choice(starts)) if len(starts) else 0
    chosen, total = [], 0
    while start < len(source) and total < max(size, 1):
      chosen.append(source[start])
      start, total = start + 1, total + len(source[start])
    return np.concatenate(chosen)

  def _fill(self, a: list[int], b: list[int], random: int, rng: np.random.Generator) -> Row:
    """Returns the row of A and B with masked tokens; a row of padding if A is empty."""
    keys, predictions = ("inputs", "token_types", "positions", "segments"), self.settings.max_predictions
    row: Row = {key: np.zeros(self.length, np.int32) for key in keys}
    row |= {"masked_positions": np.zeros(predictions, np.int32), "labels": np.zeros(predictions, np.int32)}
    row |= {"weights": np.zeros(predictions, np.float32), "bytes": np.float64(0)}
    if self.settings.next_sentence:
      row["next_sentence_label"] = np.int32(random)
    if not a:
      return row
    ids = np.array([self.start, *a, self.end, *b, *([self.end] if b else [])], np.int32)
    row["token_types"][len(a) + 2 : len(ids)] = 1
    row["positions"][: len(ids)] = np.arange(len(ids))
    row["segments"][: len(ids)] = 1
    masked = self._choose_masked(ids, len(a), rng)
    row["masked_positions"][: len(masked)] = masked
    row["labels"][: len(masked)] = ids[masked]
    row["weights"][: len(masked)] = 1
    u = rng.random(len(masked))
    random_ids = rng.integers(0, self.size, len(masked))
    ids[masked] = np.where(u < 0.8, self.mask, np.where(u < 0.9, random_ids, ids[masked]))
    row["inputs"][: len(ids)] = ids
    return row

  def _choose_masked(self, ids: np.ndarray, size_a: int, rng: np.random.Generator) -> np.ndarray:
    """Returns the positions to mask, sorted: `mask_rate` of the row, at least one, never [CLS] or [SEP]."""
    count = min(self.settings.max_predictions, max(1, round(len(ids) * self.settings.mask_rate)))
    positions = [i for i in range(1, len(ids)) if i != size_a + 1 and i != len(ids) - 1]
    words: list[list[int]] = []
    for i in positions:
      if self.settings.whole_words and words and words[-1][-1] == i - 1 and self.continues_word[ids[i]]:
        words[-1].append(i)
      else:
        words.append([i])
    masked: list[int] = []
    for i in rng.permutation(len(words)):
      if len(masked) + len(words[i]) <= count:
        masked += words[i]
      if len(masked) == count:
        break
    return np.array(sorted(masked or words[0][:count]), np.int64)


def _truncate(a: list[int], b: list[int], length: int, rng: np.random.Generator) -> tuple[list[int], list[int]]:
  """Drops tokens from a random end of the longer list, in place, until both together have at most `length`."""
  while len(a) + len(b) > length:
    longer = a if len(a) > len(b) else b
    del longer[0 if rng.random() < 0.5 else -1]
  return a, b
