"""The best that counting does: an interpolated Kneser-Ney model of words."""

import dataclasses
import math

import numpy as np

from lmjax.data.pipeline import Reader
from lmjax.data.sources.base import texts
from lmjax.data.tokenizers.base import Tokenizer
from lmjax.evals.base import Run
from lmjax.parallel.sharding import Layout
from lmjax.tasks.base import Task


@dataclasses.dataclass(frozen=True)
class KneserNey:
  """Perplexity of an n-gram model of the training text on the validation text (Kneser and Ney, 1995; Chen and Goodman,
  1999).

    p(w | c) = max(n(c w) - d, 0) / n(c .) + d u(c) / n(c .) p(w | c without its first word),  d = n1 / (n1 + 2 n2)

  n counts occurrences in the highest order and different words before it in the others, u(c) the different words after
  c, n1 and n2 the n-grams that occur once and twice. Every line is a text, after `order - 1` start tokens; its end is
  predicted too.
  """

  order: int = 5

  def __post_init__(self):
    if self.order < 2:
      raise ValueError(f"order is at least 2, not {self.order}")

  def prepare(self, task: Task, data: Reader, tokenizer: Tokenizer, batch: int, layout: Layout) -> Run:
    train, test = (_lines(source, tokenizer, self.order) for source in (data.source, data.validation))
    scores = {"perplexity": perplexity(train, test, self.order, tokenizer.size)}
    return lambda params: scores


def perplexity(train: np.ndarray, test: np.ndarray, order: int, size: int) -> float:
  """Returns the perplexity of a test text under the model of a training text.

  Args:
    train, test: ids of lines one after the other, each behind `order - 1` ids of -1, at which nothing is predicted.
    size: words there are.
  """
  words = np.concatenate([train, test])
  in_train = np.arange(len(words)) < len(train)
  real = words >= 0
  # grams[n][t] numbers the n words that end at t; contexts of the next order are those that end before it.
  grams = [np.zeros(len(words), np.int64)]
  for _ in range(order):
    before = np.concatenate([[0], grams[-1][:-1]])
    grams.append(np.unique(before * (size + 1) + words + 1, return_inverse=True)[1])
  probs = np.full(len(words), 1.0 / size)
  for n in range(1, order + 1):
    gram, context = grams[n], np.concatenate([[0], grams[n - 1][:-1]])
    if n == 1:
      context = np.zeros_like(gram)
    seen = in_train & real
    if n < order:  # one token for each different word before the n-gram: the first of each longer n-gram
      longer = np.where(seen, grams[n + 1], -1)
      seen = np.zeros(len(words), bool)
      seen[np.unique(longer, return_index=True)[1]] = True
      seen &= in_train & real
    counts = np.bincount(gram[seen], minlength=gram.max() + 1)
    totals = np.bincount(context[seen], minlength=context.max() + 1)
    types = np.bincount(context[seen][np.unique(gram[seen], return_index=True)[1]], minlength=len(totals))
    once, twice = (counts == 1).sum(), (counts == 2).sum()
    discount = once / max(once + 2 * twice, 1)
    total = totals[context]
    known = np.maximum(counts[gram] - discount, 0) + discount * types[context] * probs
    probs = np.where(total > 0, known / np.maximum(total, 1), probs)
  return math.exp(-np.log(probs[~in_train & real]).mean())


def _lines(source, tokenizer: Tokenizer, order: int) -> np.ndarray:
  start = [-1] * (order - 1)
  found = []
  for text in texts(source):
    for line in text.splitlines():
      if line.strip():
        found += [*start, *tokenizer.encode(line), tokenizer.end]
  return np.array(found, np.int64)
