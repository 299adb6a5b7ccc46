"""Contexts and continuations as rows of token ids, by kind of model."""

import dataclasses
from collections.abc import Sequence
from typing import Any

from lmjax.data.tokenizers.base import Tokenizer, ends_of
from lmjax.data.tokenizers.special import A, template_of
from lmjax.utils.errors import UserError


@dataclasses.dataclass(frozen=True)
class Row:
  """One row to score: the log-likelihoods of `targets` are summed.

  Of a decoder, `targets` are the last ids that follow `inputs`, one each. Of an encoder-decoder, `inputs` are the
  source. Of an encoder, they are predicted at `masked`, which `inputs` has masks at. Of a model that reads characters,
  `inputs` are words, and `targets` the ids of the last ones.
  """

  inputs: tuple[Any, ...]
  targets: tuple[int, ...]
  masked: tuple[int, ...] = ()


@dataclasses.dataclass(frozen=True)
class Encoder:
  """Turns pairs of strings into rows.

  kind: of the model. length: the longest input, in tokens; a longer context loses its beginning.
  """

  tokenizer: Tokenizer
  kind: str
  length: int

  def pair(self, context: str, continuation: str) -> list[Row]:
    """Returns the rows whose scores add up to log p(continuation | context).

    The tokens of the continuation are those of the whole without those of the context, whose white space at the end
    belongs to the continuation; so lm-evaluation-harness counts. An empty context is the start token, or the end.

    Raises:
      UserError: the continuation has no tokens, or more than the model takes.
    """
    moved = len(context) - len(context.rstrip())
    if moved:
      context, continuation = context[:-moved], context[-moved:] + continuation
    if self.kind == "encoder_decoder":
      return [self._targets(context, continuation)]
    if self.kind == "bidirectional_lm":
      return [self._spelled(context, continuation)]
    first = self._encode(context) if context else []
    whole = self._encode(context + continuation)
    rest = whole[len(first) :]
    if not rest:
      raise UserError(f"evaluate: the continuation {continuation!r} has no tokens of its own after {context[-40:]!r}")
    if self.kind == "encoder":
      return self._masked(first, rest)
    first = [*self._before(), *first]
    if not first:
      first = [self._prefix()]
      if first[0] == rest[0]:
        rest = rest[1:]
    if len(rest) > self.length:
      raise UserError(f"evaluate: a continuation has {len(rest)} tokens, but the model takes at most {self.length}")
    ids = [*first, *rest][-(self.length + 1) :]
    return [Row(tuple(ids[:-1]), tuple(rest))]

  def rolling(self, text: str, stride: int = 0) -> list[Row]:
    """Returns windows whose scores add up to the log-likelihood of a whole string.

    stride: tokens that a window predicts, with all that fits of the text before them as context; 0 is the model's
    length, so that windows do not overlap, as lm-evaluation-harness has them.
    """
    if self.kind == "bidirectional_lm":
      words = self._words(text)
      windows = [words[i : i + self.length] for i in range(0, len(words), self.length)]
      return [Row(tuple(window), tuple(self.tokenizer.ids(window))) for window in windows]  # type: ignore[attr-defined]
    ids = self._encode(text)
    if self.kind == "encoder":
      return self._masked_windows(ids)
    if self.kind == "encoder_decoder":
      raise UserError("evaluate: an encoder-decoder gives no likelihood to a string without a source")
    ids, length = [self._prefix(), *ids], self.length
    stride = min(stride or length, length)
    rows, done = [], 1
    while done < len(ids):
      end = min(len(ids), done + (length if done == 1 else stride))
      first = max(0, end - 1 - length)  # as much context as fits
      rows.append(Row(tuple(ids[first : end - 1]), tuple(ids[done:end])))
      done = end
    return rows

  def _targets(self, context: str, continuation: str) -> Row:
    source = self._surround(self._encode(context))[-self.length :]
    targets = self._encode(continuation)
    if not targets:
      raise UserError(f"evaluate: the continuation {continuation!r} has no tokens")
    return Row(tuple(source), tuple(targets))

  def _words(self, text: str) -> list[str]:
    """Returns the words of a string, without the ends of its lines."""
    return [word for word in self.tokenizer.words(text) if word != "\n"]  # type: ignore[attr-defined]

  def _spelled(self, context: str, continuation: str) -> Row:
    first, whole = self._words(context), self._words(context + continuation)
    rest = whole[len(first) :]
    if not 0 < len(rest) <= self.length:
      raise UserError(f"evaluate: the continuation {continuation!r} must have from 1 to {self.length} words")
    return Row(tuple(whole[-self.length :]), tuple(self.tokenizer.ids(rest)))  # type: ignore[attr-defined]

  def _masked(self, first: Sequence[int], rest: Sequence[int]) -> list[Row]:
    """Returns a row for each token of the continuation, which alone is masked (Salazar et al., 2020)."""
    mask = getattr(self.tokenizer, "mask", None)
    if mask is None:
      raise UserError("evaluate: the tokenizer has no mask token, which the pseudo-likelihood of an encoder needs")
    template = template_of(self.tokenizer, self.kind)
    free = self.length - template.added()
    if len(rest) > free:
      raise UserError(f"evaluate: a continuation has {len(rest)} tokens, but the model takes at most {free}")
    first = first[max(0, len(first) + len(rest) - free) :]
    whole = template.apply([*first, *rest])
    rows = []
    for i, token in enumerate(rest):
      at = whole.content.start + len(first) + i
      rows.append(Row((*whole.ids[:at], mask, *whole.ids[at + 1 :]), (token,), (at,)))
    return rows

  def _masked_windows(self, ids: Sequence[int]) -> list[Row]:
    free = self.length - template_of(self.tokenizer, self.kind).added()
    return [row for i in range(0, len(ids), free) for row in self._masked([], ids[i : i + free])]

  def _encode(self, text: str) -> list[int]:
    return [int(i) for i in self.tokenizer.encode(text)]

  def _surround(self, ids: list[int]) -> list[int]:
    return template_of(self.tokenizer, self.kind).apply(ids).ids

  def _before(self) -> list[int]:
    """Returns the special tokens before every string."""
    pieces: Any = template_of(self.tokenizer, self.kind).single
    numbers = [piece for piece, _ in pieces]
    return numbers[: numbers.index(A)]

  def _prefix(self) -> int:
    """Returns the token that precedes the first one."""
    start = self.tokenizer.start
    ends = ends_of(self.tokenizer)
    if start is None and not ends:
      raise UserError("evaluate: the tokenizer has neither a start nor an end, which an empty context needs")
    return ends[0] if start is None else start
