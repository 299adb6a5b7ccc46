"""Text as a model generates it."""

from collections.abc import Iterable, Iterator

from lmjax.data.tokenizers.base import Tokenizer
from lmjax.decode.beam import Beam
from lmjax.decode.sample import Sampler


class StreamedText:
  """The growing text of one continuation: decoded piece by piece, cut at the first stop string."""

  def __init__(self, tokenizer: Tokenizer, prompt: list[int], stops: list[str]):
    self._tokenizer, self._prompt, self._stops = tokenizer, prompt, stops
    self._ids: list[int] = []
    self._skip = len(tokenizer.decode(prompt))
    self._emitted = 0
    self.text = ""
    self.stopped = False

  def add(self, ids: Iterable[int]) -> str:
    """Takes new ids, and returns the text that is certain now and was not told before."""
    if self.stopped:
      return ""
    self._ids += [int(i) for i in ids if i >= 0 and i != self._tokenizer.end]
    # Decoded with the prompt, since a piece may depend on what stands before it.
    self.text = self._tokenizer.decode([*self._prompt, *self._ids])[self._skip :]
    cuts = [at for at in (self.text.find(stop) for stop in self._stops) if at >= 0]
    if cuts:
      self.text, self.stopped = self.text[: min(cuts)], True
    certain = len(self.text)
    if not self.stopped:  # half a character, or the beginning of a stop string, waits
      certain -= len(self.text) - len(self.text.rstrip("\ufffd"))
      begun = [n for stop in self._stops for n in range(1, len(stop)) if self.text.endswith(stop[:n])]
      certain = min(certain, len(self.text) - max(begun, default=0))
    return self._emit(certain)

  def finish(self) -> str:
    """Returns what was waiting."""
    return self._emit(len(self.text))

  def _emit(self, upto: int) -> str:
    told, self._emitted = self._emitted, max(self._emitted, upto)
    return self.text[told : self._emitted]


def continue_texts(
  sampler: Sampler, params, tokenizer: Tokenizer, prompts: list[str], new: int, seeds: list[int],
  stops: list[str] = (), every: int = 16,
) -> Iterator[list[str]]:  # fmt: skip
  """Yields, as tokens come, the new text of each prompt's continuation; the last time, what was waiting.

  An encoder-decoder reads the prompt as its source, and writes from the start.
  """
  ids, sources = model_inputs(sampler.model, tokenizer, prompts)
  texts = [StreamedText(tokenizer, prompt, list(stops)) for prompt in ids]
  for drawn in sampler.tokens(params, ids, new, seeds, every, sources):
    yield [text.add(row) for text, row in zip(texts, drawn, strict=True)]
    if all(text.stopped for text in texts):
      break
  yield [text.finish() for text in texts]


def model_inputs(model, tokenizer: Tokenizer, prompts: list[str]) -> tuple[list[list[int]], list[list[int]] | None]:
  """Returns the ids a decoder begins with, and those an encoder reads, if there is one."""
  if hasattr(model, "read"):
    return [[tokenizer.start]] * len(prompts), [[*tokenizer.encode(p), tokenizer.end] for p in prompts]
  return [[tokenizer.start, *tokenizer.encode(prompt)] for prompt in prompts], None


def beam_texts(beam: Beam, params, tokenizer: Tokenizer, prompts: list[str], new: int) -> list[list[str]]:
  """Returns the best continuations of each prompt that beam search finds, best first."""
  ids, sources = model_inputs(beam.model, tokenizer, prompts)
  found, _ = beam.search(params, ids, new, sources)

  def text(prompt: list[int], row) -> str:
    one = StreamedText(tokenizer, prompt, [])
    return one.add(row) + one.finish()

  return [[text(prompt, row) for row in rows] for prompt, rows in zip(ids, found, strict=True)]
