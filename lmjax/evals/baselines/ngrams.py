"""Bits per byte of unigram and bigram models on the same tokens."""

import dataclasses
import math

import numpy as np

from lmjax.data.documents import Documents
from lmjax.data.pipeline import Reader
from lmjax.data.sources.base import BadRecord
from lmjax.data.tokenizers.base import Tokenizer
from lmjax.evals.base import Context, Measure


@dataclasses.dataclass(frozen=True)
class Ngrams:
  """The bits per byte of n-gram models of the training text on the validation text.

    unigram: p(b) = (c(b) + 1) / (n + V)
    bigram:  p(b | a) = (c(a, b) + k(a) p(b)) / (c(a) + k(a)),  k(a) = number of distinct tokens after a

  c are counts, n is the number of tokens and V the size of the vocabulary. The bigram model has Witten-Bell smoothing
  (Witten and Bell, 1991).
  """

  def prepare(self, context: Context) -> Measure:
    scores = ngram_bits_per_byte(context.data, context.tokenizer)
    return lambda params: scores


def ngram_bits_per_byte(data: Reader, tokenizer: Tokenizer) -> dict[str, float]:
  """Returns `unigram_bits_per_byte` and `bigram_bits_per_byte`."""
  train, _ = _pairs(data.source, tokenizer)
  test, text_bytes = _pairs(data.validation, tokenizer)
  size = tokenizer.size
  unigram = (np.bincount(train[1], minlength=size) + 1) / (len(train[1]) + size)

  codes, counts = np.unique(train[0] * size + train[1], return_counts=True)
  total = np.bincount(train[0], minlength=size)
  types = np.bincount(codes // size, minlength=size)
  wanted = test[0] * size + test[1]
  index = np.minimum(np.searchsorted(codes, wanted), len(codes) - 1)
  seen = np.where(codes[index] == wanted, counts[index], 0)
  num_continuations = types[test[0]]
  backoff = unigram[test[1]]
  bigram = np.where(
    total[test[0]] > 0,
    (seen + num_continuations * backoff) / np.maximum(total[test[0]] + num_continuations, 1),
    backoff,
  )
  return {
    "unigram_bits_per_byte": float(-np.log(backoff).sum() / math.log(2) / text_bytes),
    "bigram_bits_per_byte": float(-np.log(bigram).sum() / math.log(2) / text_bytes),
  }


def _pairs(source, tokenizer: Tokenizer) -> tuple[tuple[np.ndarray, np.ndarray], int]:
  """Returns all tokens [N] and the token after each [N], within documents, and the number of UTF-8 bytes."""
  before, after, text_bytes = [], [], 0
  documents = Documents(source, tokenizer, None, 1)
  for i in range(len(source)):
    document = documents.read(0, i)
    if not isinstance(document, BadRecord):
      ids, size = document
      before.append(ids[:-1])
      after.append(ids[1:])
      text_bytes += size
  return (np.concatenate(before).astype(np.int64), np.concatenate(after).astype(np.int64)), text_bytes
