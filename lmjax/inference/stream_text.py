"""Text while a model generates it."""

import collections
import itertools
from collections.abc import Iterable, Iterator

import numpy as np
from flax import linen as nn

from lmjax.data.tokenizers.base import Tokenizer, ends_of
from lmjax.data.tokenizers.special import encode, template_of
from lmjax.decode.beam import Beam
from lmjax.decode.continuous import ContinuousSampler
from lmjax.decode.sample import Sampler
from lmjax.utils.pytree import Tree

SHORT = 255  # tokens; prompts up to so many are continued together


class StreamedText:
  """The growing text of one continuation, decoded as tokens arrive and cut before the first stop string."""

  def __init__(self, tokenizer: Tokenizer, prompt: list[int], stops: list[str]):
    self._tokenizer, self._prompt, self._stops = tokenizer, prompt, stops
    self._ids: list[int] = []
    self._skip = len(tokenizer.decode(prompt))
    self._emitted = 0
    self.text = ""
    self.stopped = False

  def add(self, ids: Iterable[int]) -> str:
    """Adds new ids, and returns the new text that later ids cannot change."""
    if self.stopped:
      return ""
    self._ids += [int(i) for i in ids if i >= 0 and int(i) not in ends_of(self._tokenizer)]
    # Decoded with the prompt, since the text of a token may depend on those before it.
    self.text = self._tokenizer.decode([*self._prompt, *self._ids])[self._skip :]
    # The first stop to be complete, so that nothing depends on how many ids are added together.
    cuts = [(at + len(stop), at) for stop in self._stops if (at := self.text.find(stop)) >= 0]
    if cuts:
      self.text, self.stopped = self.text[: min(cuts)[1]], True
    certain = len(self.text)
    if not self.stopped:  # an incomplete character or the beginning of a stop string is held back
      certain -= len(self.text) - len(self.text.rstrip("\ufffd"))
      begun = [n for stop in self._stops for n in range(1, len(stop)) if self.text.endswith(stop[:n])]
      certain = min(certain, len(self.text) - max(begun, default=0))
    return self._emit(certain)

  def finish(self) -> str:
    """Returns the text that was held back."""
    return self._emit(len(self.text))

  def _emit(self, end: int) -> str:
    start, self._emitted = self._emitted, max(self._emitted, end)
    return self.text[start : self._emitted]


def continue_texts(
  sampler: Sampler, params: Tree, tokenizer: Tokenizer, prompts: list[str], new: int, seeds: list[int],
  stops: list[str] = (), every: int = 16, parse_special: bool = False, longest: int | None = None,
  window: int | None = None,
) -> Iterator[list[str]]:  # fmt: skip
  """Yields the new text of each prompt's continuation after every `every` tokens; at the end, what was held back.

  An encoder-decoder reads the prompt as its source, and its continuation begins after the start token.

  Args:
    new: maximum number of tokens of a continuation.
    seeds: one for each prompt.
    stops: strings before which a continuation ends.
    longest: the last tokens of a decoder's prompt that are kept, or None for all.
    window: tokens that the model sees, where a continuation may be longer.
  """
  ids, sources = _cut_inputs(sampler.model, tokenizer, prompts, parse_special, longest)
  texts = [StreamedText(tokenizer, prompt, list(stops)) for prompt in ids]
  draws = sampler.tokens(params, ids, new, seeds, every, sources)
  if window is not None:
    draws = beyond(sampler, params, ids, new, seeds, every, window)
  yield from stream(texts, draws, new if getattr(tokenizer, "forced_end", False) else None)


def continue_many(
  sampler: ContinuousSampler, params: Tree, tokenizer: Tokenizer, prompts: list[str], new: int, seeds: list[int],
  rows: int, stops: list[str] = (), parse_special: bool = False, longest: int | None = None,
) -> Iterator[tuple[int, str]]:  # fmt: skip
  """Yields (number of a prompt, its whole continuation) as they end, with continuous batching.

  Args:
    rows: prompts that are continued at the same time; the others as of `continue_texts`.
  """
  ids, sources = _cut_inputs(sampler.model, tokenizer, prompts, parse_special, longest)
  forced_end = new if getattr(tokenizer, "forced_end", False) else None
  alike: dict[int, list[int]] = {}  # a long prompt takes space in all rows: it is continued beside long ones
  for number, read in enumerate(ids if sources is None else sources):
    alike.setdefault(max(len(read), SHORT).bit_length(), []).append(number)
  for numbers in alike.values():
    pick = lambda values: [values[i] for i in numbers]  # noqa: B023, E731
    texts: dict[int, StreamedText] = {}
    made: collections.Counter[int] = collections.Counter()
    over: set[int] = set()
    draws = sampler.continue_all(
      params, pick(ids), new, pick(seeds), rows, sources=sources and pick(sources), stopped=over.__contains__
    )
    for place, tokens, last in draws:
      if place not in texts:
        texts[place] = StreamedText(tokenizer, ids[numbers[place]], list(stops))
      made[place] += len(tokens)
      texts[place].add(tokens[:-1] if made[place] == forced_end else tokens)
      if last or texts[place].stopped:
        over.add(place)
        yield numbers[place], texts.pop(place).text


def stream(
  texts: list[StreamedText], draws: Iterator[np.ndarray], forced_end: int | None = None
) -> Iterator[list[str]]:
  """Yields the new text of continuations as their tokens [B, T] are drawn; at the end, what was held back.

  Args:
    forced_end: of a model that ends what is cut off, the number of tokens at which it is, of which the last is the end.
  """
  made = 0
  for drawn in draws:
    made += drawn.shape[1]
    drawn = drawn[:, :-1] if made == forced_end else drawn
    yield [text.add(row) for text, row in zip(texts, drawn, strict=True)]
    if all(text.stopped for text in texts):
      break
  yield [text.finish() for text in texts]


def beyond(
  sampler: Sampler, params: Tree, prompts: list[list[int]], new: int, seeds: list[int], every: int, window: int
) -> Iterator[np.ndarray]:
  """Yields what `sampler.tokens` does, of text that is longer than the model: whenever the window is full, the model
  reads the last half of it again and continues from there."""
  rows, made, ended = [list(prompt) for prompt in prompts], 0, np.zeros(len(prompts), bool)
  for again in itertools.count():
    kept = [row if len(row) < window else row[-max(window // 2, 1) :] for row in rows]
    count = min(new - made, window - max(map(len, kept)))
    for drawn in sampler.tokens(params, kept, count, [(seed + again * 7919) % 2**32 for seed in seeds], every):
      drawn = np.where(ended[:, None], -1, drawn)
      for row, tokens in zip(rows, drawn, strict=True):
        row += [int(token) for token in tokens if token >= 0]
      ended |= (drawn < 0).any(axis=1)
      made += drawn.shape[1]
      yield drawn
    if made >= new or ended.all():
      return


def model_inputs(
  model: nn.Module, tokenizer: Tokenizer, prompts: list[str], parse_special: bool = False
) -> tuple[list[list[int]], list[list[int]] | None]:
  """Returns the ids from which the decoder continues, and the encoder's source ids where there is an encoder.

  A prompt without a token becomes the start token.
  """
  template = template_of(tokenizer, model.kind)
  different = {
    prompt: template.apply(encode(tokenizer, prompt, parse_special)).ids for prompt in dict.fromkeys(prompts)
  }
  ids = [different[prompt] for prompt in prompts]
  start = [] if tokenizer.start is None else [tokenizer.start]
  if model.kind == "encoder_decoder":
    forced = getattr(tokenizer, "forced_start", None)  # of BARTs that summarize
    start = start if forced is None else [*start, forced]
    return [start] * len(prompts), ids
  return [prompt or start for prompt in ids], None


def _cut_inputs(
  model: nn.Module, tokenizer: Tokenizer, prompts: list[str], parse_special: bool, longest: int | None
) -> tuple[list[list[int]], list[list[int]] | None]:
  """Returns the inputs of prompts, of which a decoder reads the last tokens alone where there are more."""
  ids, sources = model_inputs(model, tokenizer, prompts, parse_special)
  return ids if sources is not None or longest is None else [prompt[-longest:] for prompt in ids], sources


def beam_texts(
  beam: Beam, params: Tree, tokenizer: Tokenizer, prompts: list[str], new: int, parse_special: bool = False
) -> list[list[str]]:
  """Returns the best continuations of each prompt by beam search, best first."""
  ids, sources = model_inputs(beam.model, tokenizer, prompts, parse_special)
  tokens_BxKxT, _ = beam.search(params, ids, new, sources)
  tokens_BxKxT = tokens_BxKxT[..., :-1] if getattr(tokenizer, "forced_end", False) else tokens_BxKxT

  def decode(prompt: list[int], row) -> str:
    text = StreamedText(tokenizer, prompt, [])
    return text.add(row) + text.finish()

  return [[decode(prompt, row) for row in rows] for prompt, rows in zip(ids, tokens_BxKxT, strict=True)]
