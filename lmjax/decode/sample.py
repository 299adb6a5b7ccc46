"""Sampling: a prefill of the prompts, then one token at a time against a static cache."""

import dataclasses
import functools
from collections.abc import Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax import struct

from lmjax.decode.logits import Sampling
from lmjax.parallel.sharding import constrain
from lmjax.utils.errors import UserError
from lmjax.utils.pytree import Tree

STEP = 16  # prompts and sources are padded to a multiple of it: few widths, so that few are compiled


@struct.dataclass
class _Decoding:
  """What goes from one token to the next."""

  cache: Tree
  tokens_B: jax.Array  # drawn, not yet in the cache
  rngs_B: jax.Array
  seen_BxV: jax.Array
  alive_B: jax.Array  # has not drawn its end


@dataclasses.dataclass(frozen=True)
class Sampler:
  """Continues prompts with a decoder or an encoder-decoder.

  max_tokens: tokens of prompt and continuation together; end: the token that ends a continuation, None for none.
  """

  model: nn.Module
  max_tokens: int
  sampling: Sampling = Sampling()
  end: int | None = None

  def prepare(self, params: Tree) -> Tree:
    """Returns the parameters laid out as decoding reads them fastest; do it once."""
    return jax.jit(self.model.decode_layout)(params)

  def tokens(
    self,
    params: Tree,
    prompts: Sequence[Sequence[int]],
    new: int,
    seeds: Sequence[int],
    every: int = 1,
    sources: Sequence[Sequence[int]] | None = None,
  ) -> Iterator[np.ndarray]:
    """Yields the continuations of the prompts, [B, up to `every`] at a time; behind a row's end stands -1.

    Args:
      params: as `prepare` gives them.
      prompts: ids, none empty, of any lengths.
      new: tokens to add to each, at most.
      seeds: one a row; the same seed and prompt give the same text in any batch.
      every: tokens between looks at the result; more is faster, 1 streams.
      sources: ids an encoder reads, for each prompt.

    Raises:
      UserError: prompts and continuations do not fit the max_tokens.
    """
    if new < 1:
      return
    tokens, valid = padded_prompts(prompts, new, self.max_tokens)
    seeds = np.asarray(seeds, np.uint32)
    decoding = self._prefill(params, tokens, valid, seeds, tokens.shape[1] + new, padded_sources(sources))
    yield np.asarray(decoding.tokens_B)[:, None]
    made = 1
    while made < new and bool(np.any(decoding.alive_B)):
      decoding, drawn = self._extend(params, decoding, min(every, new - made))
      made += drawn.shape[1]
      yield np.asarray(drawn)

  @functools.partial(jax.jit, static_argnums=(0, 5))
  def _prefill(self, params, tokens_BxL, valid_BxL, seeds_B, max_tokens, source):
    rngs_B = jax.vmap(jax.random.key)(seeds_B)
    hidden, cache = prefill(self.model, params, tokens_BxL, valid_BxL, max_tokens, source)
    rows = jnp.arange(len(tokens_BxL))[:, None]
    seen = jnp.zeros((len(tokens_BxL), self.model.config.vocabulary), bool)
    seen = seen.at[rows, tokens_BxL].max(valid_BxL)
    return self._draw(params, _Decoding(cache, tokens_BxL[:, -1], rngs_B, seen, valid_BxL[:, -1]), hidden[:, -1])

  @functools.partial(jax.jit, static_argnums=(0, 3), donate_argnums=2)
  def _extend(self, params, decoding, count):
    def one(decoding, _):
      hidden, cache = self.model.apply(
        {"params": params},
        decoding.cache,
        jnp.maximum(decoding.tokens_B, 0)[:, None],
        decoding.alive_B[:, None],
        method="extend",
      )
      decoding = self._draw(params, decoding.replace(cache=cache), hidden[:, -1])
      return decoding, decoding.tokens_B

    decoding, drawn = jax.lax.scan(one, decoding, length=count)
    return decoding, constrain(drawn.T)  # for every host to read

  def _draw(self, params, decoding: _Decoding, hidden_BxD: jax.Array) -> _Decoding:
    """Draws the next token of every row; rows that have ended draw -1."""
    logits_BxV = self.model.apply({"params": params}, hidden_BxD, method="logits")
    keys = jax.vmap(jax.random.split)(decoding.rngs_B)
    drawn_B = self.sampling.draw(keys[:, 1], logits_BxV, decoding.seen_BxV)
    tokens_B = jnp.where(decoding.alive_B, drawn_B, -1)
    alive_B = decoding.alive_B if self.end is None else decoding.alive_B & (tokens_B != self.end)
    seen_BxV = decoding.seen_BxV
    if self.sampling.repetition_penalty != 1:
      seen_BxV = seen_BxV.at[jnp.arange(len(drawn_B)), drawn_B].set(True)
    return _Decoding(decoding.cache, constrain(tokens_B), keys[:, 0], seen_BxV, constrain(alive_B))


def padded_prompts(prompts: Sequence[Sequence[int]], new: int, max_tokens: int) -> tuple[np.ndarray, np.ndarray]:
  """Returns prompts as one array [B, L], and which of its tokens are valid.

  Raises:
    UserError: a prompt has no tokens, or `new` more of them do not fit the max_tokens.
  """
  longest = max(map(len, prompts))
  if min(map(len, prompts)) < 1:
    raise UserError("generate: a prompt has no tokens; begin it with the start token")
  if longest + new > max_tokens:
    raise UserError(
      f"generate: {longest} tokens of prompt and {new} new ones do not fit the model's {max_tokens}; "
      f"ask for at most {max(max_tokens - longest, 0)}"
    )
  width = longest if longest == 1 else min(-(-longest // STEP) * STEP, max_tokens - new)
  tokens = np.zeros((len(prompts), max(width, longest)), np.int32)
  valid = np.zeros(tokens.shape, bool)
  for row, prompt in enumerate(prompts):  # on the right, so that every row's last token is in the last column
    tokens[row, -len(prompt) :] = prompt
    valid[row, -len(prompt) :] = True
  return tokens, valid


def padded_sources(sources: Sequence[Sequence[int]] | None) -> tuple[np.ndarray, np.ndarray] | None:
  """Returns sources as one array [B, M], and which of its tokens are valid."""
  if sources is None:
    return None
  tokens = np.zeros((len(sources), -(-max(map(len, sources)) // STEP) * STEP), np.int32)
  valid = np.zeros(tokens.shape, bool)
  for row, source in enumerate(sources):
    tokens[row, : len(source)] = source
    valid[row, : len(source)] = True
  return tokens, valid


def prefill(
  model: nn.Module, params: Tree, tokens_BxL: jax.Array, valid_BxL: jax.Array, max_tokens: int,
  source: tuple[jax.Array, jax.Array] | None,
) -> tuple[jax.Array, Tree]:  # fmt: skip
  """Returns the final vectors [B, L, D] of prompts and a cache that holds them and the source, if any."""
  prompt = {"inputs": tokens_BxL, "segments": valid_BxL.astype(jnp.int32)}
  if source is not None:
    tokens_BxM, valid_BxM = source
    prompt = {f"decoder_{key}": value for key, value in prompt.items()}
    prompt |= {"inputs": tokens_BxM, "segments": valid_BxM.astype(jnp.int32)}
  return model.apply({"params": params}, prompt, max_tokens, method="prefill")
