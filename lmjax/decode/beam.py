"""Beam search: the best continuations that keeping the `beams` best beginnings finds."""

import dataclasses
import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax import struct

from lmjax.decode.sample import padded_prompts, padded_sources, prefill
from lmjax.parallel.sharding import constrain
from lmjax.utils.pytree import Tree

NEG_INF = -1e9  # a score no continuation has


@struct.dataclass
class _Beams:
  """What goes from one token to the next: K beginnings and K ended continuations of each of B prompts."""

  cache: Tree
  logits: jax.Array  # [B * K, V] of the next token
  step: jax.Array
  alive_BxK: jax.Array  # log-attention_weights
  tokens_BxKxT: jax.Array
  ended_BxK: jax.Array  # scores
  texts_BxKxT: jax.Array


@dataclasses.dataclass(frozen=True)
class Beam:
  """Searches continuations with a model as Sampler takes it.

    score(y) = log p(y) / ((5 + |y|) / 6)^penalty       (Wu et al., 2016, arXiv:1609.08144; |y| counts the end token)

  beams: beginnings kept of each prompt; penalty: 0 prefers short texts, 1 nearly none; max_tokens, end: as in Sampler.
  A continuation that has not ended after its last token is a candidate as it is.
  """

  model: nn.Module
  max_tokens: int
  beams: int = 4
  penalty: float = 0.6
  end: int = 0

  def __post_init__(self):
    if self.beams < 1 or self.penalty < 0:
      raise ValueError("beams is at least 1, penalty at least 0")

  def prepare(self, params: Tree) -> Tree:
    """Returns the parameters laid out as decoding reads them fastest; do it once."""
    return jax.jit(self.model.decode_layout)(params)

  def search(
    self,
    params: Tree,
    prompts: Sequence[Sequence[int]],
    new: int,
    sources: Sequence[Sequence[int]] | None = None,
  ) -> tuple[np.ndarray, np.ndarray]:
    """Returns the continuations, best first, [B, K, new] with -1 behind their end, and their scores [B, K].

    Args:
      params: as `prepare` gives them.
      prompts: ids, none empty; sources: ids an encoder reads, for each prompt.
      new: tokens of a continuation, at most.
    """
    tokens, valid = padded_prompts(prompts, new, self.max_tokens)
    texts, scores = self._search(params, tokens, valid, new, padded_sources(sources))
    return np.asarray(texts), np.asarray(scores)

  @functools.partial(jax.jit, static_argnums=(0, 4))
  def _search(self, params, tokens_BxL, valid_BxL, new, source):
    batch, size = len(tokens_BxL), self.beams
    hidden, cache = prefill(self.model, params, tokens_BxL, valid_BxL, tokens_BxL.shape[1] + new, source)
    rows = jnp.repeat(jnp.arange(batch), size)
    empty = jnp.full((batch, size, new), -1, jnp.int32)
    beams = _Beams(
      cache=cache.reorder(rows),
      logits=self._logits(params, hidden[:, -1])[rows],
      step=jnp.zeros((), jnp.int32),
      alive_BxK=jnp.where(jnp.arange(size) == 0, 0.0, NEG_INF) * jnp.ones((batch, 1)),  # all begin alike: one counts
      tokens_BxKxT=empty,
      ended_BxK=jnp.full((batch, size), NEG_INF),
      texts_BxKxT=empty,
    )

    def not_done(beams):
      reachable = beams.alive_BxK[:, 0] / self._norm(new)  # log-attention_weights only fall
      return (beams.step < new) & jnp.any((reachable > beams.ended_BxK[:, -1]) & (beams.alive_BxK[:, 0] > NEG_INF / 2))

    beams = jax.lax.while_loop(not_done, functools.partial(self._step, params), beams)
    unfinished = jnp.where(beams.step == new, beams.alive_BxK / self._norm(new), NEG_INF)
    texts, scores = _best(
      jnp.concatenate([beams.texts_BxKxT, beams.tokens_BxKxT], axis=1),
      jnp.concatenate([beams.ended_BxK, unfinished], axis=1),
      size,
    )
    return constrain(texts), constrain(scores)  # for every host to read

  def _step(self, params: Tree, beams: _Beams) -> _Beams:
    batch, size = beams.alive_BxK.shape
    log_probs = jax.nn.log_softmax(beams.logits.astype(jnp.float32)).reshape(batch, size, -1)
    vocabulary = log_probs.shape[-1]
    flat = (beams.alive_BxK[..., None] + log_probs).reshape(batch, -1)
    # Twice as many as are kept: at most one continuation of each beginning ends here.
    found_Bx2K, flat_indices = jax.lax.top_k(flat, min(2 * size, flat.shape[1]))
    rows, tokens = flat_indices // vocabulary, (flat_indices % vocabulary).astype(jnp.int32)
    texts = jnp.take_along_axis(beams.tokens_BxKxT, rows[..., None], axis=1).at[:, :, beams.step].set(tokens)
    ends = tokens == self.end
    finished = jnp.where(ends, found_Bx2K / self._norm(beams.step + 1), NEG_INF)
    texts_BxKxT, ended_BxK = _best(
      jnp.concatenate([beams.texts_BxKxT, texts], axis=1), jnp.concatenate([beams.ended_BxK, finished], axis=1), size
    )
    alive_BxK, kept = jax.lax.top_k(jnp.where(ends, NEG_INF, found_Bx2K), size)
    tokens_BxKxT = jnp.take_along_axis(texts, kept[..., None], axis=1)
    origin = (jnp.take_along_axis(rows, kept, axis=1) + size * jnp.arange(batch)[:, None]).reshape(-1)
    following = jnp.take_along_axis(tokens, kept, axis=1).reshape(-1, 1)
    hidden, cache = self.model.apply(
      {"params": params}, beams.cache.reorder(origin), following, jnp.ones_like(following, bool), method="extend"
    )
    return _Beams(
      cache, self._logits(params, hidden[:, -1]), beams.step + 1, alive_BxK, tokens_BxKxT, ended_BxK, texts_BxKxT
    )

  def _logits(self, params: Tree, hidden: jax.Array) -> jax.Array:
    return self.model.apply({"params": params}, hidden, method="logits")

  def _norm(self, length) -> jax.Array:
    return ((5.0 + length) / 6.0) ** self.penalty


def _best(texts_BxNxT: jax.Array, scores_BxN: jax.Array, size: int) -> tuple[jax.Array, jax.Array]:
  scores_BxK, kept = jax.lax.top_k(scores_BxN, size)
  return jnp.take_along_axis(texts_BxNxT, kept[..., None], axis=1), scores_BxK
