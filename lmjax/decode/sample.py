"""Sampling: a prefill of the prompts, then one token at a time with a cache of fixed size."""

import dataclasses
import functools
from collections.abc import Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax import struct

from lmjax.decode.logits import Sampling
from lmjax.layers import leaves
from lmjax.parallel.sharding import constrain
from lmjax.utils import pytree
from lmjax.utils.errors import UserError
from lmjax.utils.pytree import Tree

Array = jax.Array | np.ndarray
PART = 512  # tokens of a prompt that are read together, so that attention's memory does not grow with the prompt
STEP = 16  # prompts and sources are padded to a multiple of this length, so that few lengths are compiled


@struct.dataclass
class _Decoding:
  """The state of sampling between two tokens."""

  cache: Tree
  tokens_B: jax.Array  # sampled, not yet in the cache
  rngs_B: jax.Array
  seen_BxV: jax.Array
  alive_B: jax.Array  # has not sampled the end token


@dataclasses.dataclass(frozen=True)
class Sampler:
  """Continues prompts with a decoder or an encoder-decoder.

  max_tokens: maximum number of tokens of a prompt and its continuation. end: the id, or the ids, that end a
  continuation; None for none.
  """

  model: nn.Module
  max_tokens: int
  sampling: Sampling = Sampling()
  end: int | tuple[int, ...] | None = None

  def prepare(self, params: Tree) -> Tree:
    """Returns the parameters in the layout that is fastest for decoding; call once."""
    return prepare(self.model, params)

  def tokens(
    self, params: Tree, prompts: Sequence[Sequence[int]], new: int, seeds: Sequence[int], every: int = 1,
    sources: Sequence[Sequence[int]] | None = None,
  ) -> Iterator[np.ndarray]:  # fmt: skip
    """Yields the continuations, up to `every` tokens of each at a time, [B, T]; after its end token, a row has -1.

    Args:
      params: as `prepare` returns them.
      prompts: token ids, at least one each, of any lengths.
      new: maximum number of tokens of a continuation.
      seeds: one for each row; the same seed and prompt give the same continuation in any batch.
      every: tokens of each transfer to the host; 1 for streaming, larger is faster.
      sources: ids that the encoder reads, one list for each prompt; None for a decoder.

    Raises:
      UserError: a prompt and its continuation exceed `max_tokens`, or a prompt is empty.
    """
    if new >= 1:
      padded, source = pad_prompts(prompts, new, self.max_tokens), pad_sources(sources)
      yield from self.continuations(params, *padded, new, np.asarray(seeds, np.uint32), every, source)

  def continuations(
    self, params: Tree, tokens: Array, valid: Array, new: int, seeds: Array, every: int = 1,
    source: tuple[Array, Array] | Array | None = None,
  ) -> Iterator[np.ndarray]:  # fmt: skip
    """Yields continuations as `tokens` does, of prompts that are padded already.

    Args:
      tokens: the prompts [B, L], padded on the left.
      valid: which of their tokens are no padding [B, L].
      seeds: uint32 [B].
      source: ids that the encoder reads [B, M], and which of them are no padding [B, M]; of a decoder, patches of
        images [B, I, C], whose places are the first tokens of the prompts, or None.
    """
    decoding = self._prefill(params, tokens, valid, seeds, tokens.shape[1] + new, source)
    yield np.asarray(decoding.tokens_B)[:, None]
    made = 1
    while made < new and bool(np.any(decoding.alive_B)):
      decoding, drawn = self._extend(params, decoding, min(every, new - made))
      made += drawn.shape[1]
      yield np.asarray(drawn)

  @functools.partial(jax.jit, static_argnums=(0, 5))
  def _prefill(self, params, tokens_BxL, valid_BxL, seeds_B, max_tokens, source):
    rngs_B = jax.vmap(jax.random.key)(seeds_B)
    hidden, cache = self._read(params, tokens_BxL, valid_BxL, max_tokens, source)
    seen = jnp.zeros((len(tokens_BxL), self.model.config.vocabulary), bool)
    seen = seen.at[jnp.arange(len(tokens_BxL))[:, None], tokens_BxL].max(valid_BxL)
    return self._draw(params, _Decoding(cache, tokens_BxL[:, -1], rngs_B, seen, valid_BxL[:, -1]), hidden[:, -1])

  def _read(self, *prompts):
    return prefill(self.model, *prompts)

  @functools.partial(jax.jit, static_argnums=(0, 3), donate_argnums=2)
  def _extend(self, params, decoding, count):
    def one(decoding, _):
      tokens, valid = jnp.maximum(decoding.tokens_B, 0)[:, None], decoding.alive_B[:, None]
      hidden, cache = self.model.apply({"params": params}, decoding.cache, tokens, valid, method="extend")
      decoding = self._draw(params, decoding.replace(cache=cache), hidden[:, -1])
      return decoding, decoding.tokens_B

    decoding, drawn = jax.lax.scan(one, decoding, length=count)
    return decoding, constrain(drawn.T)  # replicated, as every process reads them

  def _draw(self, params, decoding: _Decoding, hidden_BxD: jax.Array) -> _Decoding:
    """Samples the next token of every row; a row that has ended gets -1."""
    logits_BxV = self.model.apply({"params": params}, hidden_BxD, method="logits")
    keys = jax.vmap(jax.random.split)(decoding.rngs_B)
    drawn_B = self.sampling.draw(keys[:, 1], logits_BxV, decoding.seen_BxV)
    tokens_B = jnp.where(decoding.alive_B, drawn_B, -1)
    alive_B = decoding.alive_B & ~is_end(tokens_B, self.end)
    seen_BxV = decoding.seen_BxV
    if self.sampling.repetition_penalty != 1:
      seen_BxV = seen_BxV.at[jnp.arange(len(drawn_B)), drawn_B].set(True)
    return _Decoding(decoding.cache, constrain(tokens_B), keys[:, 0], seen_BxV, constrain(alive_B))


@functools.partial(jax.jit, static_argnums=0)
def prepare(model: nn.Module, params: Tree) -> Tree:
  """Returns the parameters of a model in the layout that is fastest for decoding."""
  fastest = lambda name, value: value.for_decoding(name) if leaves.is_leaf(value) else value  # noqa: E731
  return pytree.map_named(fastest, model.decode_layout(params), is_leaf=leaves.is_leaf)


def is_end(tokens: jax.Array, end: int | tuple[int, ...] | None) -> jax.Array:
  """Returns which tokens are an end."""
  ends = () if end is None else (end,) if isinstance(end, int) else end
  return functools.reduce(jnp.logical_or, [tokens == i for i in ends], jnp.zeros(tokens.shape, bool))


def pad_prompts(prompts: Sequence[Sequence[int]], new: int, max_tokens: int) -> tuple[np.ndarray, np.ndarray]:
  """Returns the prompts [B, L], padded on the left, and which of their tokens are valid [B, L].

  Raises:
    UserError: a prompt is empty, or a prompt and `new` tokens exceed `max_tokens`.
  """
  longest = max(map(len, prompts))
  if min(map(len, prompts)) < 1:
    raise UserError("generate: a prompt has no tokens; start it with the start token")
  if longest + new > max_tokens:
    raise UserError(
      f"generate: a prompt of {longest} tokens and {new} new tokens exceed the model's maximum of {max_tokens}; "
      f"generate at most {max(max_tokens - longest, 0)}; a decoder continues beyond it with --window"
    )
  width = longest if longest == 1 else min(-(-longest // STEP) * STEP, max_tokens - new)
  tokens = np.zeros((len(prompts), max(width, longest)), np.int32)
  valid = np.zeros(tokens.shape, bool)
  for row, prompt in enumerate(prompts):  # the last token of every row is in the last column
    tokens[row, -len(prompt) :] = prompt
    valid[row, -len(prompt) :] = True
  return tokens, valid


def pad_sources(sources: Sequence[Sequence[int]] | None) -> tuple[np.ndarray, np.ndarray] | None:
  """Returns the sources [B, M], padded on the right, and which of their tokens are valid [B, M]."""
  if sources is None:
    return None
  tokens = np.zeros((len(sources), -(-max(map(len, sources)) // STEP) * STEP), np.int32)
  valid = np.zeros(tokens.shape, bool)
  for row, source in enumerate(sources):
    tokens[row, : len(source)], valid[row, : len(source)] = source, True
  return tokens, valid


def prefill(
  model: nn.Module, params: Tree, tokens_BxL: jax.Array, valid_BxL: jax.Array, max_tokens: int,
  source: tuple[jax.Array, jax.Array] | jax.Array | None,
) -> tuple[jax.Array, Tree]:  # fmt: skip
  """Returns final vectors [B, L, D], and a cache with space for `max_tokens` that contains prompts.

  The vectors are those of all tokens, or of the last one alone where a long prompt is read in parts of `PART` tokens.

  Args:
    source: ids that the encoder reads [B, M] and which of them are valid [B, M]; of a decoder, patches of images
      [B, I, C], or None.
  """
  if source is None and tokens_BxL.shape[1] > PART and reads_parts(model):
    return _prefill_parts(model, params, tokens_BxL, valid_BxL, max_tokens)
  prompt: dict = {"inputs": tokens_BxL, "segments": valid_BxL.astype(jnp.int32)}
  if source is not None and model.kind == "decoder":
    prompt |= {"embeddings": source}
  elif source is not None:
    tokens_BxM, valid_BxM = source
    prompt = {f"decoder_{key}": value for key, value in prompt.items()}
    prompt |= {"inputs": tokens_BxM, "segments": valid_BxM.astype(jnp.int32)}
  return model.apply({"params": params}, prompt, max_tokens, method="prefill")


def reads_parts(model: nn.Module) -> bool:
  """Returns whether a model may read a prompt in parts: not if what comes later changes how the first ones are read."""
  rotary, prefix = (getattr(model.config, name, None) for name in ("rotary", "prefix"))
  return model.kind == "decoder" and not prefix and getattr(rotary, "scaling", "none") not in ("dynamic", "longrope")


def _prefill_parts(
  model: nn.Module, params: Tree, tokens_BxL: jax.Array, valid_BxL: jax.Array, max_tokens: int
) -> tuple[jax.Array, Tree]:
  """Returns the final vector [B, 1, D] of the last token of prompts, and their cache."""
  first = (tokens_BxL.shape[1] - 1) % PART + 1
  _, cache = prefill(model, params, tokens_BxL[:, :first], valid_BxL[:, :first], max_tokens, None)

  def extend(cache, part):
    hidden, cache = model.apply({"params": params}, cache, *part, method="extend")
    return cache, hidden[:, -1:]

  split = lambda x: x[:, first:].reshape(len(x), -1, PART).swapaxes(0, 1)  # noqa: E731
  cache, last = jax.lax.scan(extend, cache, (split(tokens_BxL), split(valid_BxL)))
  return last[-1], cache
