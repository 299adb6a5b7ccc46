"""Rows with a source and a target that an objective makes of text: span corruption, prefix LM, mixtures and others.

An objective is a function of ids and a random generator. It returns a source, which the encoder reads, and a target,
which the decoder predicts; together they contain the whole text. Raffel et al., 2020, is arXiv:1910.10683 (T5).
"""

import dataclasses
from collections.abc import Iterable
from typing import Any, Protocol

import numpy as np

from lmjax.data.documents import Documents
from lmjax.data.objectives.seq2seq import fill
from lmjax.data.packer import Packer, Position, ReadDocument, Row
from lmjax.data.pipeline import Reader
from lmjax.data.tokenizers.base import Tokenizer
from lmjax.data.tokenizers.sentinels import Sentinels
from lmjax.utils.errors import UserError

Ids = np.ndarray


class Objective(Protocol):
  """Divides ids into a source and a target."""

  def input_tokens(self, length: int) -> int:
    """Returns how many tokens of text give a source of at most `length` tokens, its end token included."""

  def target_tokens(self, length: int) -> int:
    """Returns the maximum tokens of the target that they give, its end token included."""

  def __call__(self, ids: Ids, tokenizer: Tokenizer, rng: np.random.Generator) -> tuple[Ids, Ids]:
    """Returns the source and the target, both without an end token."""


@dataclasses.dataclass(frozen=True)
class Consecutive:
  """Source w_1 .. w_T, target w_(T+1) .. w_2T, where T = length - 1 leaves space for the end token."""

  def input_tokens(self, length: int) -> int:
    return 2 * (length - 1)

  def target_tokens(self, length: int) -> int:
    return length

  def __call__(self, ids: Ids, tokenizer: Tokenizer, rng: np.random.Generator) -> tuple[Ids, Ids]:
    half = (len(ids) + 1) // 2
    return ids[:half], ids[half:]


@dataclasses.dataclass(frozen=True)
class PrefixLM:
  """The text split at a uniformly random position: source before it, target after it (Raffel et al., 2020)."""

  def input_tokens(self, length: int) -> int:
    return length

  def target_tokens(self, length: int) -> int:
    return length

  def __call__(self, ids: Ids, tokenizer: Tokenizer, rng: np.random.Generator) -> tuple[Ids, Ids]:
    cut = int(rng.integers(1, max(len(ids), 2)))
    return ids[:cut], ids[cut:]


@dataclasses.dataclass(frozen=True)
class SpanCorruption:
  """Source: noise spans replaced by sentinels; target: each sentinel and its span (Raffel et al., 2020, sec. 3.1.4).

    source  The <extra_id_0> sat on <extra_id_1> .      target  <extra_id_0> cat <extra_id_1> the mat

  noise_density: fraction of the tokens that are noise; mean_span_length: mean tokens of a noise span. Noise tokens and
  other tokens are divided into equally many spans, all divisions equally likely; the first span is not noise.

  Raises:
    UserError: when called with a tokenizer that has fewer sentinels than there are noise spans.
  """

  noise_density: float = 0.15
  mean_span_length: float = 3.0

  def __post_init__(self):
    if not 0 < self.noise_density < 1 or self.mean_span_length < 1:
      raise ValueError("noise_density must be between 0 and 1, and mean_span_length at least 1")

  def input_tokens(self, length: int) -> int:
    """Returns how many tokens of text give a source of at most `length`, its end token included: 568 for 512."""
    text = length
    while sum(self._sizes(text + 1)[i] for i in (0, 2)) + 1 <= length:
      text += 1
    return text

  def target_tokens(self, length: int) -> int:
    """Returns the tokens of the target that they give, its end token included: 114 for 512."""
    _, noise, spans = self._sizes(self.input_tokens(length))
    return noise + spans + 1

  def _sizes(self, text: int) -> tuple[int, int, int]:
    """Returns the number of other tokens, noise tokens and noise spans in `text` tokens."""
    noise = min(max(int(np.round(text * self.noise_density)), 1), text - 1)
    return text - noise, noise, min(max(int(np.round(noise / self.mean_span_length)), 1), text - noise)

  def __call__(self, ids: Ids, tokenizer: Tokenizer, rng: np.random.Generator) -> tuple[Ids, Ids]:
    if len(ids) < 2:
      return ids, ids[:0]
    kept, noise, spans = self._sizes(len(ids))
    if not isinstance(tokenizer, Sentinels) or spans > tokenizer.sentinels:
      raise UserError(
        f"data: {spans} noise spans need as many sentinels: set data.tokenizer.kind="
        f"lmjax.data.tokenizers.sentinels:SentinelTokenizerConfig and data.tokenizer.sentinels={spans}"
      )
    lengths = np.stack([_divide(kept, spans, rng), _divide(noise, spans, rng)], axis=1).reshape(-1)
    ends = np.cumsum(lengths)
    source, target = [], []
    for span in range(spans):
      before, corrupted = (slice(ends[i] - lengths[i], ends[i]) for i in (2 * span, 2 * span + 1))
      sentinel = [tokenizer.sentinel(span)]
      source += [ids[before], sentinel]
      target += [sentinel, ids[corrupted]]
    return np.concatenate(source), np.concatenate(target)


@dataclasses.dataclass(frozen=True)
class MixtureOfDenoisers:
  """One of several objectives for each example, drawn by weight, as in UL2 (Tay et al., 2022, arXiv:2205.05131).

  By default the paper's three kinds: R (mean span 3, 15 % noise), X (mean span 32 and 15 % noise, or mean span 3 and
  50 % noise) and S (prefix LM). No token for the kind is put before the source, as it is in the paper.
  """

  parts: dict[str, Objective] = dataclasses.field(
    default_factory=lambda: {
      "R": SpanCorruption(0.15, 3.0),
      "X": SpanCorruption(0.15, 32.0),
      "X2": SpanCorruption(0.5, 3.0),
      "S": PrefixLM(),
    }  # fmt: skip
  )
  weights: dict[str, float] = dataclasses.field(default_factory=dict)  # by name; 1 by default

  def __post_init__(self):
    weights = [self.weights.get(name, 1.0) for name in self.parts]
    if not self.parts or set(self.weights) - set(self.parts) or min(weights) < 0 or not sum(weights):
      raise ValueError("weights must be at least 0 and not all 0, and each must name a part")

  def input_tokens(self, length: int) -> int:
    return min(part.input_tokens(length) for part in self.parts.values())  # so that the source fits for every part

  def target_tokens(self, length: int) -> int:
    text = self.input_tokens(length)
    return max(_max_target(part, text) for part in self.parts.values())

  def __call__(self, ids: Ids, tokenizer: Tokenizer, rng: np.random.Generator) -> tuple[Ids, Ids]:
    weights = np.array([self.weights.get(name, 1.0) for name in self.parts])
    name = list(self.parts)[int(rng.choice(len(weights), p=weights / weights.sum()))]
    return self.parts[name](ids, tokenizer, rng)


@dataclasses.dataclass(frozen=True)
class Denoising(Reader):
  """Rows of one source and target each, which an objective makes from text.

  objective: SpanCorruption by default. length: tokens of the source; the objective determines those
  of the target.
  """

  objective: Objective = SpanCorruption()

  def shared(self, tokenizer: Tokenizer | None = None) -> dict[str, Any]:
    return {"target_length": self.objective.target_tokens(self.length)}

  def position_size(self, training: bool) -> int:
    return 3  # document, tokens used, rows made

  def packers(self, documents: Documents, streams: Iterable[int]) -> dict[int, Packer]:
    documents.check_tokenizer()
    return {stream: DenoisingRows(self, documents, stream) for stream in streams}


class DenoisingRows:
  """Makes the rows of one stream: documents are concatenated and cut into windows, one for each row.

  Position: the document to read next, how many of its tokens have been used, and the rows made so far, which seed the
  random choices.
  """

  def __init__(self, settings: Denoising, documents: Documents, stream: int):
    self.objective, self.tokenizer = settings.objective, documents.tokenizer
    self.length = settings.length
    self.lengths = (settings.length, settings.objective.target_tokens(settings.length))
    self.input_tokens = settings.objective.input_tokens(settings.length)
    self.seed, self.stream = documents.seed or 0, stream

  def row(self, read: ReadDocument, position: Position) -> tuple[Row, Position]:
    document, used, made = position
    chunks, filled, text_bytes = [], 0, 0.0
    while filled < self.input_tokens:
      try:
        ids, size = read(document)
      except IndexError:
        break
      text = ids[1:-1]
      taken = min(self.input_tokens - filled, len(text) - used)
      if taken > 0:
        chunks.append(text[used : used + taken])
        text_bytes += size * taken / len(text)
      filled, used = filled + max(taken, 0), used + max(taken, 0)
      if used >= len(text):
        document, used = document + 1, 0
    if filled < 2:
      return fill([], self.lengths, self.tokenizer.start), (document, used, made)
    rng = np.random.default_rng([self.seed, self.stream, made])
    source, target = self.objective(np.concatenate(chunks), self.tokenizer, rng)
    end = np.array([self.tokenizer.end], np.int32)
    source, target = (np.concatenate([s, end])[:n] for s, n in zip((source, target), self.lengths, strict=True))
    return fill([((source, target), text_bytes)], self.lengths, self.tokenizer.start), (document, used, made + 1)


def _max_target(part: Objective, text: int) -> int:
  """Returns the maximum tokens of the target that `text` tokens give, its end token included."""
  if isinstance(part, SpanCorruption):
    _, noise, spans = part._sizes(text)
    return noise + spans + 1
  return text if isinstance(part, PrefixLM) else text // 2 + 1


def _divide(count: int, parts: int, rng: np.random.Generator) -> np.ndarray:
  """Returns `parts` sizes of at least 1 whose sum is `count`, all such divisions equally likely."""
  cuts = np.sort(rng.choice(count - 1, parts - 1, replace=False)) + 1
  return np.diff(np.concatenate([[0], cuts, [count]]))
