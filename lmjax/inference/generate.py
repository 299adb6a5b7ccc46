"""Continuing prompts with a loaded model, for the command `generate` and for notebooks."""

import dataclasses
import functools
import importlib
from collections.abc import Iterable, Iterator

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath

from lmjax.data.tokenizers.base import Tokenizer, ends_of
from lmjax.decode.beam import Beam
from lmjax.decode.continuous import ContinuousSampler, able
from lmjax.decode.logits import Sampling
from lmjax.decode.sample import Sampler, pad_prompts
from lmjax.decode.speculative import Counts, SpeculativeSampler
from lmjax.inference.stream_text import StreamedText, beam_texts, continue_many, continue_texts, stream
from lmjax.layers.leaves import is_leaf
from lmjax.storage.base import LoadedModel
from lmjax.tasks.encode import Encode
from lmjax.utils import files
from lmjax.utils.errors import UserError
from lmjax.utils.fields import Fields
from lmjax.utils.pytree import Tree

Row = tuple[str, int]  # a prompt, and the number of its sample from 0


@dataclasses.dataclass(frozen=True)
class Generator:
  """Continues prompts by sampling or by beam search.

  beams: of beam search; 0 samples instead. length_penalty: of beam search. stops: strings before which a continuation
  ends. seed: of the first sample of each prompt. dtype: of the weights, `bfloat16` to cast them. parse_special: read
  special tokens in a prompt, such as `<|im_start|>`, as what they are instead of as text. truncate: a prompt of a
  decoder loses its beginning where it leaves no space for max_new_tokens, which is otherwise an error. window: a
  decoder continues beyond its length, where it sees the last half of it to all of it. draft: a model of the same
  vocabulary, which proposes tokens; what is drawn is distributed as without it. proposed: tokens of a draft.
  """

  loaded: LoadedModel
  sampling: Sampling = Sampling()
  max_new_tokens: int = 128
  beams: int = 0
  length_penalty: float = 0.6
  stops: tuple[str, ...] = ()
  seed: int = 0
  dtype: str | None = None
  parse_special: bool = False
  truncate: bool = False
  window: bool = False
  draft: LoadedModel | None = None
  proposed: int = 4

  def __post_init__(self):
    if self.loaded.task.model.kind not in ("decoder", "encoder_decoder"):
      raise UserError(
        f"generate: {type(self.loaded.task.model).__name__} models cannot generate text; "
        "use a decoder or an encoder-decoder"
      )
    if isinstance(self.loaded.task, Encode):
      raise UserError("generate: this model scores no tokens: it is a classifier, or a model without a head")
    if self.window and (self.beams or self.loaded.task.model.kind != "decoder"):
      raise UserError("generate: a window moves over the text of a decoder, and not in beam search")
    if self.draft and self.beams:
      raise UserError("generate: a draft is of no use in beam search")
    if self.draft and not _same_ids(self.loaded.tokenizer, self.draft.tokenizer):
      raise UserError("generate: the draft has another vocabulary; a draft needs the tokenizer of the model")
    if not 0 <= self.seed < 2**31:
      raise UserError(f"generate: the seed must be at least 0 and below 2^31, not {self.seed}")
    if unsupported := getattr(self.loaded.tokenizer, "unsupported", ""):
      raise UserError(
        f"generate: the model's generation_config.json or config.json has {unsupported}, which is not supported"
      )

  @functools.cached_property
  def _search(self) -> Sampler | SpeculativeSampler | Beam:
    model, max_tokens, end = self.loaded.task.model, self.loaded.length, ends_of(self.loaded.tokenizer)
    if model.kind == "encoder_decoder":
      max_tokens = self.max_new_tokens + 2  # the length limits the source; the target starts with one token or two
    excluded = getattr(self.loaded.tokenizer, "excluded", ())
    if self.beams:
      return Beam(model, max_tokens, self.beams, self.length_penalty, end, excluded)
    sampling = dataclasses.replace(self.sampling, excluded=excluded)
    if self.draft:
      return SpeculativeSampler(model, self.draft.task.model, max_tokens, sampling, end, self.proposed)
    return ContinuousSampler(model, max_tokens, sampling, end)

  @property
  def draft_counts(self) -> Counts:
    """How many of the draft's tokens were accepted so far."""
    return self._search.counts if isinstance(self._search, SpeculativeSampler) else Counts()

  @functools.cached_property
  def _params(self) -> Tree:
    own = self.loaded.params["model"]
    params = self._search.prepare((own, self.draft.params["model"]) if self.draft else own)
    if self.dtype != "bfloat16":
      return params
    narrow = lambda p: p.cast(jnp.bfloat16) if is_leaf(p) else p.astype(jnp.bfloat16)  # noqa: E731
    return jax.tree.map(narrow, params, is_leaf=is_leaf)

  def stream(self, rows: list[Row], every: int = 16) -> Iterator[list[str]]:
    """Yields the new text of each row's sampled continuation after every `every` tokens."""
    prompts, seeds = [prompt for prompt, _ in rows], [self.seed + sample for _, sample in rows]
    longest = self.loaded.length - self.max_new_tokens if self.truncate else None
    return continue_texts(
      self._search, self._params, self.loaded.tokenizer, prompts, self.max_new_tokens, seeds, list(self.stops), every,
      self.parse_special, longest, self.loaded.length if self.window else None,
    )  # fmt: skip

  def about_image(self, image: epath.PathLike, rows: list[Row], every: int = 16) -> Iterator[list[str]]:
    """Returns an iterator over the new text of each row's continuation, which follows an image and the prompt.

    Raises:
      UserError: the model reads no images, or the file is not one.
    """
    images = importlib.import_module("lmjax.inference.images")  # what reads them is not needed for text
    patches, prompts = images.inputs(self.loaded, image, [prompt for prompt, _ in rows])
    padded = pad_prompts(prompts, self.max_new_tokens, self.loaded.length)
    seeds = np.array([self.seed + sample for _, sample in rows], np.uint32)
    drawn = self._search.continuations(self._params, *padded, self.max_new_tokens, seeds, every, patches)
    return stream([StreamedText(self.loaded.tokenizer, [], list(self.stops)) for _ in rows], drawn)

  def texts(self, rows: list[Row], image: epath.PathLike | None = None) -> list[str]:
    """Returns the continuation of each row; with beam search, sample 0 of a prompt is the best, 1 the second best."""
    if image:
      return ["".join(parts) for parts in zip(*self.about_image(image, rows), strict=True)]
    if self.beams:
      prompts = list(dict.fromkeys(prompt for prompt, _ in rows))
      best = beam_texts(
        self._search, self._params, self.loaded.tokenizer, prompts, self.max_new_tokens, self.parse_special
      )
      best_by_prompt = dict(zip(prompts, best, strict=True))
      return [best_by_prompt[prompt][sample] for prompt, sample in rows]
    return ["".join(parts) for parts in zip(*self.stream(rows), strict=True)]

  def all_texts(self, rows: list[Row], batch: int, image: epath.PathLike | None = None) -> Iterator[tuple[int, str]]:
    """Yields (number of a row, its continuation) as they end, of any number of rows, `batch` at a time.

    Sampled rows do not wait for each other: one that has ended makes room for the next (continuous batching).
    """
    if image or self.beams or self.draft or self.window or len(rows) <= batch or not able(self.loaded.task.model):
      for first in range(0, len(rows), batch):
        yield from enumerate(self.texts(rows[first : first + batch], image), first)
      return
    prompts, seeds = [prompt for prompt, _ in rows], [self.seed + sample for _, sample in rows]
    yield from continue_many(
      self._search, self._params, self.loaded.tokenizer, prompts, self.max_new_tokens, seeds, batch, list(self.stops),
      self.parse_special, self.loaded.length - self.max_new_tokens if self.truncate else None,
    )  # fmt: skip


def in_order(numbered: Iterable[tuple[int, str]]) -> Iterator[str]:
  """Yields numbered texts in the order of their numbers, which are 0, 1, 2, ...: each as soon as those before it."""
  early, following = {}, 0
  for number, text in numbered:
    early[number] = text
    while following in early:
      yield early.pop(following)
      following += 1


def _same_ids(one: Tokenizer, other: Tokenizer) -> bool:
  """Returns whether two tokenizers give the same ids to words, numbers, accents and marks."""
  sample = "The quick brown fox, 1234567890 times;\n\tnaïve façades ≈ π, and ((x) => {return -x;})"
  return one.size == other.size and list(one.encode(sample)) == list(other.encode(sample))


def read_prompts(path: epath.PathLike) -> list[str]:
  """Returns the prompts of a file: one in each line, plain or as a JSON object with a `prompt`.

  Raises:
    UserError: the file cannot be read or has no prompts, or a JSON line has no `prompt`.
  """
  prompts = []
  for number, line in enumerate(files.read_text(path).split("\n"), 1):
    if line.startswith("{"):
      where = f"{path}:{number}"
      try:
        prompts.append(Fields(files.parse_json(line), where).text("prompt"))
      except ValueError as error:
        raise UserError(f"{where} {error}") from error
    elif line.strip():
      prompts.append(line.removesuffix("\r"))
  if not prompts:
    raise UserError(f"generate: {path} has no prompts")
  return prompts
