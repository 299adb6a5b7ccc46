"""The perplexity of an interpolated Kneser-Ney n-gram model."""

import dataclasses
import math

import numpy as np

from lmjax.data.sources.base import Source, texts
from lmjax.data.tokenizers.base import Tokenizer
from lmjax.evals.base import Context, Measure


@dataclasses.dataclass(frozen=True)
class KneserNey:
  """The perplexity of an n-gram model of the training text on the validation text (Chen and Goodman, 1999).

    p(w | c) = max(n(c w) - d, 0) / n(c .) + d u(c) / n(c .) p(w | c without its first word),  d = n1 / (n1 + 2 n2)

  n(c w) is the number of occurrences for the highest order, and the number of distinct words before c w for the lower
  ones. u(c) is the number of distinct words after c; n1 and n2 are how many n-grams of the order have a count of one
  and of two. Below the first order is the uniform distribution. Each line is a sentence after `order - 1` start tokens,
  and its end token is predicted too.
  """

  order: int = 5

  def __post_init__(self):
    if self.order < 2:
      raise ValueError(f"order must be at least 2, not {self.order}")

  def prepare(self, context: Context) -> Measure:
    data, tokenizer = context.data, context.tokenizer
    train, test = (token_lines(source, tokenizer, self.order) for source in (data.source, data.validation))
    scores = {"perplexity": perplexity(train, test, self.order, tokenizer.size)}
    return lambda params: scores


def perplexity(train: np.ndarray, test: np.ndarray, order: int, size: int) -> float:
  """Returns the perplexity of the test tokens under the n-gram model of the training tokens.

  Args:
    train, test: ids as `token_lines` returns them.
    size: vocabulary size.
  """
  words = np.concatenate([train, test])
  in_train = np.arange(len(words)) < len(train)
  real = words >= 0
  # grams[n][t] is the index of the n-gram that ends at t; its context is the (n-1)-gram that ends at t - 1.
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
    if n < order:  # count an n-gram once per distinct word before it: at the first occurrence of each (n+1)-gram
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
    interpolated = np.maximum(counts[gram] - discount, 0) + discount * types[context] * probs
    probs = np.where(total > 0, interpolated / np.maximum(total, 1), probs)
  return math.exp(-np.log(probs[~in_train & real]).mean())


def token_lines(source: Source, tokenizer: Tokenizer, order: int) -> np.ndarray:
  """Returns the ids of all lines in one array: per line `order - 1` ids of -1 (not predicted), tokens, end token."""
  start = [-1] * (order - 1)
  ids = []
  for text in texts(source):
    for line in text.splitlines():
      if line.strip():
        ids += [*start, *tokenizer.encode(line), tokenizer.end]
  return np.array(ids, np.int64)
