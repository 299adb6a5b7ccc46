"""Texts turned into source and target: span corruption, consecutive sequences, prefix LM, and mixtures of them.

An objective is a function of a stretch of ids and a random generator that returns what the encoder reads and what the
decoder is to write; all are invertible, and none needs anything but the ids.
"""

import dataclasses
from typing import Protocol

import numpy as np

from lmjax.data.tokenizers.base import Tokenizer
from lmjax.data.tokenizers.sentinels import Sentinels
from lmjax.utils.errors import UserError

Ids = np.ndarray


class Objective(Protocol):
  """What is hidden of a text."""

  def input_tokens(self, length: int) -> int:
    """Returns how many tokens of text make a source of at most `length`."""

  def target_tokens(self, length: int) -> int:
    """Returns how many tokens the target of such a stretch has at most, its end included."""

  def __call__(self, ids: Ids, tokenizer: Tokenizer, rng: np.random.Generator) -> tuple[Ids, Ids]:
    """Returns the source and the target of a stretch; the end token is the reader's to add."""


@dataclasses.dataclass(frozen=True)
class Consecutive:
  """w_1 .. w_T to the encoder, w_T+1 .. w_2T from the decoder; T is one less than the length, for the end."""

  def input_tokens(self, length: int) -> int:
    return 2 * (length - 1)

  def target_tokens(self, length: int) -> int:
    return length

  def __call__(self, ids: Ids, tokenizer: Tokenizer, rng: np.random.Generator) -> tuple[Ids, Ids]:
    half = (len(ids) + 1) // 2
    return ids[:half], ids[half:]


@dataclasses.dataclass(frozen=True)
class PrefixLM:
  """A text cut anywhere: what stands before to the encoder, what follows from the decoder (Raffel et al., 2020)."""

  def input_tokens(self, length: int) -> int:
    return length

  def target_tokens(self, length: int) -> int:
    return length

  def __call__(self, ids: Ids, tokenizer: Tokenizer, rng: np.random.Generator) -> tuple[Ids, Ids]:
    cut = int(rng.integers(1, max(len(ids), 2)))
    return ids[:cut], ids[cut:]


@dataclasses.dataclass(frozen=True)
class SpanCorruption:
  """Spans replaced by sentinels; the target, those spans behind their sentinels (Raffel et al., 2020, section 3.1.4).

    source  The <extra_id_0> sat on <extra_id_1> .      target  <extra_id_0> cat <extra_id_1> the mat

  noise_density: share of the tokens that are hidden; mean_span_length: tokens of a span, on average. Of the hidden
  tokens and of the others all divisions into so many spans are equally likely; text comes first.
  """

  noise_density: float = 0.15
  mean_span_length: float = 3.0

  def __post_init__(self):
    if not 0 < self.noise_density < 1 or self.mean_span_length < 1:
      raise ValueError("noise_density lies between 0 and 1, mean_span_length is at least 1")

  def input_tokens(self, length: int) -> int:
    """Returns the longest text whose source, with its end, is at most `length`: 568 for 512."""
    text = length
    while sum(self._sizes(text + 1)[i] for i in (0, 2)) + 1 <= length:
      text += 1
    return text

  def target_tokens(self, length: int) -> int:
    """Returns the tokens of its target, end included: 114 for 512."""
    _, hidden, spans = self._sizes(self.input_tokens(length))
    return hidden + spans + 1

  def _sizes(self, text: int) -> tuple[int, int, int]:
    """Returns the tokens left, the tokens hidden and the spans of a text."""
    hidden = min(max(int(np.round(text * self.noise_density)), 1), text - 1)
    return text - hidden, hidden, min(max(int(np.round(hidden / self.mean_span_length)), 1), text - hidden)

  def __call__(self, ids: Ids, tokenizer: Tokenizer, rng: np.random.Generator) -> tuple[Ids, Ids]:
    if len(ids) < 2:
      return ids, ids[:0]
    left, hidden, spans = self._sizes(len(ids))
    if spans > getattr(tokenizer, "sentinels", 0):
      raise UserError(
        f"data: {spans} spans need as many sentinels: "
        f"tokenizer.kind=lmjax.data.tokenizers.sentinels:SentinelTokenizerConfig, sentinels={spans}"
      )
    lengths = np.stack([_divide(left, spans, rng), _divide(hidden, spans, rng)], axis=1).reshape(-1)
    ends = np.cumsum(lengths)
    source, target = [], []
    for span in range(spans):
      text, gone = (slice(ends[i] - lengths[i], ends[i]) for i in (2 * span, 2 * span + 1))
      sentinel = [tokenizer.sentinel(span)]
      source += [ids[text], sentinel]
      target += [sentinel, ids[gone]]
    return np.concatenate(source), np.concatenate(target)


@dataclasses.dataclass(frozen=True)
class MixtureOfDenoisers:
  """One objective a stretch, drawn by weight, as UL2 mixes them (Tay et al., 2022, arXiv:2205.05131).

  By default its R (spans of 3, 15 %), X (long spans of 32, or half of the text) and S (prefix LM) denoisers.
  """

  parts: dict[str, Objective] = dataclasses.field(
    default_factory=lambda: {
      "R": SpanCorruption(0.15, 3.0),
      "X": SpanCorruption(0.15, 32.0),
      "X2": SpanCorruption(0.5, 3.0),
      "S": PrefixLM(),
    }  # fmt: skip
  )
  weights: dict[str, float] = dataclasses.field(default_factory=dict)  # by name; 1 where nothing is said

  def __post_init__(self):
    odds = [self.weights.get(name, 1.0) for name in self.parts]
    if not self.parts or set(self.weights) - set(self.parts) or min(odds) < 0 or not sum(odds):
      raise ValueError("weights name parts, are at least 0, and not all 0")

  def input_tokens(self, length: int) -> int:
    return min(
      part.input_tokens(length) for part in self.parts.values()
    )  # so that each source fits, whichever is drawn

  def target_tokens(self, length: int) -> int:
    text = self.input_tokens(length)
    return max(_longest(part, text) for part in self.parts.values())

  def __call__(self, ids: Ids, tokenizer: Tokenizer, rng: np.random.Generator) -> tuple[Ids, Ids]:
    odds = np.array([self.weights.get(name, 1.0) for name in self.parts])
    name = list(self.parts)[int(rng.choice(len(odds), p=odds / odds.sum()))]
    return self.parts[name](ids, tokenizer, rng)


def _longest(part: Objective, text: int) -> int:
  """Returns the tokens of an objective's longest target of so much text, its end included."""
  if isinstance(part, SpanCorruption):
    _, hidden, spans = part._sizes(text)
    return hidden + spans + 1
  return text if isinstance(part, PrefixLM) else text // 2 + 1


def _divide(count: int, parts: int, rng: np.random.Generator) -> np.ndarray:
  """Returns the sizes of `parts` parts of at least 1, all divisions of `count` equally likely."""
  cuts = np.sort(rng.choice(count - 1, parts - 1, replace=False)) + 1
  return np.diff(np.concatenate([[0], cuts, [count]]))


def restore(source: Ids, target: Ids, tokenizer: Sentinels) -> Ids:
  """Returns the text that a source and a target of span corruption were made of."""
  marks = range(tokenizer.inner.size, tokenizer.size)
  hidden: dict[int, list[int]] = {}
  for i in target:
    if int(i) in marks:
      hidden[int(i)] = now = []
    else:
      now.append(int(i))
  return np.array([j for i in source for j in (hidden.get(int(i), []) if int(i) in marks else [int(i)])], np.int32)
