"""Beam search with a cache of fixed size."""

import dataclasses
import functools
import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax import struct

from lmjax.decode.logits import exclude
from lmjax.decode.sample import is_end, pad_prompts, pad_sources, prefill, prepare
from lmjax.parallel.sharding import constrain
from lmjax.utils.pytree import Tree

NEG_INF = -1e9  # below the score of any continuation


@struct.dataclass
class _Beams:
  """The state of the search: K live and K finished continuations of each of B prompts."""

  cache: Tree
  logits: jax.Array  # [B * K, V] of the next token
  step: jax.Array
  live_log_probs_BxK: jax.Array
  live_tokens_BxKxT: jax.Array
  finished_scores_BxK: jax.Array
  finished_tokens_BxKxT: jax.Array


@dataclasses.dataclass(frozen=True)
class Beam:
  """Beam search with a decoder or an encoder-decoder.

    score(y) = log p(y) / ((5 + |y|) / 6)^penalty       (Wu et al., 2016, arXiv:1609.08144; |y| counts the end token)

  beams: live continuations of each prompt. penalty: the exponent of the length penalty; 0 favours short continuations,
  1 nearly divides by their length. max_tokens, end: as in `Sampler`. excluded: ids that are never generated; the
  others keep their probabilities. After the last step, continuations without an end token are candidates too.
  """

  model: nn.Module
  max_tokens: int
  beams: int = 4
  penalty: float = 0.6
  end: int | tuple[int, ...] | None = 0
  excluded: tuple[int, ...] = ()

  def __post_init__(self):
    if self.beams < 1 or not 0 <= self.penalty < math.inf:
      raise ValueError(f"beams must be at least 1 and penalty at least 0, not {self.beams} and {self.penalty}")

  def prepare(self, params: Tree) -> Tree:
    """Returns the parameters in the layout that is fastest for decoding; call once."""
    return prepare(self.model, params)

  def search(
    self,
    params: Tree,
    prompts: Sequence[Sequence[int]],
    new: int,
    sources: Sequence[Sequence[int]] | None = None,
  ) -> tuple[np.ndarray, np.ndarray]:
    """Returns the continuations [B, K, new], best first and padded with -1, and their scores [B, K].

    Args:
      params: as `prepare` returns them.
      prompts: token ids, at least one each.
      new: maximum number of tokens of a continuation.
      sources: ids that the encoder reads, one list for each prompt; None for a decoder.

    Raises:
      UserError: a prompt is empty, or a prompt and its continuation exceed `max_tokens`.
    """
    tokens, valid = pad_prompts(prompts, new, self.max_tokens)
    continuations, scores = self._search(params, tokens, valid, new, pad_sources(sources))
    return np.asarray(continuations), np.asarray(scores)

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
      # All live continuations start equal, so only one of them counts.
      live_log_probs_BxK=jnp.full((batch, size), NEG_INF).at[:, 0].set(0.0),
      live_tokens_BxKxT=empty,
      finished_scores_BxK=jnp.full((batch, size), NEG_INF),
      finished_tokens_BxKxT=empty,
    )

    def not_done(beams):
      best_B = beams.live_log_probs_BxK[:, 0]  # log probabilities only decrease
      improvable_B = (best_B / self._norm(new) > beams.finished_scores_BxK[:, -1]) & (best_B > NEG_INF / 2)
      return (beams.step < new) & jnp.any(improvable_B)

    beams = jax.lax.while_loop(not_done, functools.partial(self._step, params), beams)
    unfinished_scores = jnp.where(beams.step == new, beams.live_log_probs_BxK / self._norm(new), NEG_INF)
    tokens, scores = _best(
      jnp.concatenate([beams.finished_tokens_BxKxT, beams.live_tokens_BxKxT], axis=1),
      jnp.concatenate([beams.finished_scores_BxK, unfinished_scores], axis=1),
      size,
    )
    return constrain(tokens), constrain(scores)  # replicated, as every process reads them

  def _step(self, params: Tree, beams: _Beams) -> _Beams:
    batch, size = beams.live_log_probs_BxK.shape
    log_probs = exclude(jax.nn.log_softmax(beams.logits.astype(jnp.float32)), self.excluded).reshape(batch, size, -1)
    vocabulary = log_probs.shape[-1]
    flat = (beams.live_log_probs_BxK[..., None] + log_probs).reshape(batch, -1)
    # Twice K candidates leave at least K live ones where each live continuation has one end token.
    ends = len(self.end) if isinstance(self.end, tuple) else 1
    log_probs_Bx2K, flat_indices = jax.lax.top_k(flat, min((1 + max(ends, 1)) * size, flat.shape[1]))
    rows, tokens = flat_indices // vocabulary, (flat_indices % vocabulary).astype(jnp.int32)
    candidates = jnp.take_along_axis(beams.live_tokens_BxKxT, rows[..., None], axis=1)
    candidates = candidates.at[:, :, beams.step].set(tokens)
    ends = is_end(tokens, self.end)
    scores = jnp.where(ends, log_probs_Bx2K / self._norm(beams.step + 1), NEG_INF)
    finished_tokens_BxKxT, finished_scores_BxK = _best(
      jnp.concatenate([beams.finished_tokens_BxKxT, candidates], axis=1),
      jnp.concatenate([beams.finished_scores_BxK, scores], axis=1),
      size,
    )
    live_log_probs_BxK, kept = jax.lax.top_k(jnp.where(ends, NEG_INF, log_probs_Bx2K), size)
    live_tokens_BxKxT = jnp.take_along_axis(candidates, kept[..., None], axis=1)
    origin = (jnp.take_along_axis(rows, kept, axis=1) + size * jnp.arange(batch)[:, None]).reshape(-1)
    last = jnp.take_along_axis(tokens, kept, axis=1).reshape(-1, 1)
    hidden, cache = self.model.apply(
      {"params": params}, beams.cache.reorder(origin), last, jnp.ones_like(last, bool), method="extend"
    )
    return _Beams(
      cache=cache,
      logits=self._logits(params, hidden[:, -1]),
      step=beams.step + 1,
      live_log_probs_BxK=live_log_probs_BxK,
      live_tokens_BxKxT=live_tokens_BxKxT,
      finished_scores_BxK=finished_scores_BxK,
      finished_tokens_BxKxT=finished_tokens_BxKxT,
    )

  def _logits(self, params: Tree, hidden: jax.Array) -> jax.Array:
    logits: jax.Array = self.model.apply({"params": params}, hidden, method="logits")
    return logits

  def _norm(self, length) -> jax.Array:
    return ((5.0 + length) / 6.0) ** self.penalty


def _best(tokens_BxNxT: jax.Array, scores_BxN: jax.Array, size: int) -> tuple[jax.Array, jax.Array]:
  scores_BxK, kept = jax.lax.top_k(scores_BxN, size)
  return jnp.take_along_axis(tokens_BxNxT, kept[..., None], axis=1), scores_BxK
