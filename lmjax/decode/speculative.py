"""Speculative decoding: a small model drafts tokens, of which the model itself keeps as many as it would have drawn.

Leviathan et al., 2023, arXiv:2211.17192; Chen et al., 2023, arXiv:2302.01318.
"""

import dataclasses
import functools
from collections.abc import Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax import struct

from lmjax.decode.logits import Sampling
from lmjax.decode.sample import is_end, pad_prompts, prefill, prepare
from lmjax.layers.cache import Cache
from lmjax.parallel.sharding import constrain
from lmjax.utils.errors import UserError
from lmjax.utils.pytree import Tree


@dataclasses.dataclass
class Counts:
  """What a speculative sampler has done, over all rows and until they ended."""

  steps: int = 0  # of the model, each of which scores all drafted tokens of a row
  drafted: int = 0
  accepted: int = 0
  tokens: int = 0  # of continuations, without the first of each, which needs no draft

  def __str__(self) -> str:
    share, each = self.accepted / max(self.drafted, 1), self.tokens / max(self.steps, 1)
    return f"{share:.1%} of {self.drafted:,} drafted tokens were accepted; {each:.2f} tokens a step of the model"


@struct.dataclass
class _State:
  """The state between two rounds. Both caches have the same tokens, in the same slots."""

  target: Cache
  draft: Cache
  tokens_B: jax.Array  # drawn, in neither cache yet
  rngs_B: jax.Array
  left_B: jax.Array  # tokens that a row may still get; 0 after its end


@dataclasses.dataclass(frozen=True)
class SpeculativeSampler:
  """Continues prompts with a decoder, as `decode.sample.Sampler` does, in fewer of its steps.

  A token d that the draft has drawn with probability q(d) is accepted with probability min(1, p(d) / q(d)). At the
  first that is not, a token is drawn from max(0, p - q) / sum max(0, p - q) instead; after all, one more from p. Each
  token is then distributed as p, the model's own distribution under `sampling`, whatever q is.

  draft: the model that drafts, of the same vocabulary. count: tokens that it drafts at a time. counts: is updated.
  """

  model: nn.Module
  draft: nn.Module
  max_tokens: int
  sampling: Sampling = Sampling()
  end: int | tuple[int, ...] | None = None
  count: int = 4
  counts: Counts = dataclasses.field(default_factory=Counts, compare=False)

  def __post_init__(self):
    if self.count < 1:
      raise UserError(f"generate: a draft has at least 1 token, not {self.count}")
    if self.sampling.repetition_penalty != 1:
      raise UserError("generate: a draft does not know a repetition penalty; leave out one of both")
    for model, name in ((self.model, "model"), (self.draft, "draft")):
      if not (model.kind == "decoder" and hasattr(model.config, "kv_heads")):
        raise UserError(f"generate: the {name} is not a decoder with attention; generate without a draft")
    if self.model.config.vocabulary != self.draft.config.vocabulary:
      raise UserError(
        f"generate: the draft has {self.draft.config.vocabulary:,} token ids and the model "
        f"{self.model.config.vocabulary:,}; a draft needs the model's tokenizer"
      )
    if getattr(self.model.config.rotary, "scaling", "none") in ("dynamic", "longrope"):
      raise UserError("generate: positions of this model depend on the length of its text; generate without a draft")

  def prepare(self, params: Tree) -> Tree:
    """Returns the parameters (of the model, of the draft) in the layout that is fastest for decoding; call once."""
    target, draft = params
    return prepare(self.model, target), prepare(self.draft, draft)

  def tokens(
    self, params: Tree, prompts: Sequence[Sequence[int]], new: int, seeds: Sequence[int], every: int = 1,
    sources: None = None,
  ) -> Iterator[np.ndarray]:  # fmt: skip
    """Yields the continuations [B, T], in parts of any size; after its end token, a row has -1.

    Args:
      params: as `prepare` returns them.
      prompts: token ids, at least one each, of any lengths.
      new: maximum number of tokens of a continuation.
      seeds: one for each row; the same seed and prompt give the same continuation in any batch.
      every, sources: as those of `Sampler.tokens`, without an effect here.

    Raises:
      UserError: a prompt and its continuation exceed `max_tokens`, or a prompt is empty.
    """
    if new < 1:
      return
    tokens, valid = pad_prompts(prompts, new, self.max_tokens)
    slots = tokens.shape[1] + new + 2 * (self.count + 1)
    state = self._prefill(params, tokens, valid, np.asarray(seeds, np.uint32), new, slots)
    rows: list[list[int]] = [[int(token)] for token in np.asarray(state.tokens_B)]
    alive, yielded = np.asarray(state.left_B) > 0, 0
    while True:
      # A row that ended has -1 until all have ended.
      ready = min((len(row) for row, going in zip(rows, alive, strict=True) if going), default=max(map(len, rows)))
      if ready > yielded:
        part = [row[yielded:ready] for row in rows]
        yield np.array([row + [-1] * (ready - yielded - len(row)) for row in part], np.int32)
        yielded = ready
      if not alive.any():
        return
      if int(state.target.index) + self.count + 1 > slots:
        state = self._compact(state)
      state, made, accepted = self._round(params, state)
      made, accepted = np.asarray(made), np.asarray(accepted)
      for row, drawn in zip(rows, made, strict=True):
        row += [int(token) for token in drawn if token >= 0]
      self.counts.steps += int(alive.sum())
      self.counts.drafted += int(alive.sum()) * self.count
      self.counts.accepted += int(accepted[alive].sum())
      self.counts.tokens += int((made >= 0).sum())
      alive = np.asarray(state.left_B) > 0

  @functools.partial(jax.jit, static_argnums=(0, 6))
  def _prefill(self, params, tokens_BxL, valid_BxL, seeds_B, new, slots):
    target, draft = params
    hidden, target_cache = prefill(self.model, target, tokens_BxL, valid_BxL, slots, None)
    _, draft_cache = prefill(self.draft, draft, tokens_BxL, valid_BxL, slots, None)
    keys = jax.vmap(jax.random.split)(jax.vmap(jax.random.key)(seeds_B))
    logits_BxV = self._filter(self.model.apply({"params": target}, hidden[:, -1], method="logits"))
    tokens_B = self._draw(keys[:, 1], logits_BxV)
    left_B = jnp.where(is_end(tokens_B, self.end), 0, new - 1)
    return _State(target_cache, draft_cache, constrain(tokens_B), keys[:, 0], constrain(left_B))

  @functools.partial(jax.jit, static_argnums=0, donate_argnums=2)
  def _round(self, params, state):
    """Returns the next state, the tokens [B, K + 1] of each row with -1 after them, and how many drafts were kept."""
    target, draft = params
    alive_B, count = state.left_B > 0, self.count
    keys = jax.vmap(lambda key: jax.random.split(key, count + 4))(state.rngs_B)

    def one(carry, rngs_B):
      cache, tokens_B = carry
      hidden, cache = self.draft.apply({"params": draft}, cache, tokens_B[:, None], alive_B[:, None], method="extend")
      logits_BxV = self._filter(self.draft.apply({"params": draft}, hidden[:, -1], method="logits"))
      return (cache, self._draw(rngs_B, logits_BxV)), (tokens_B, logits_BxV)

    # One step more than there are drafts, so that the last one is in the draft's cache, too.
    drafting = keys[:, : count + 1].swapaxes(0, 1)
    first_B = jnp.maximum(state.tokens_B, 0)
    (draft_cache, _), (tokens_SxB, q_SxBxV) = jax.lax.scan(one, (state.draft, first_B), drafting)
    tokens_BxS, q_BxKxV = tokens_SxB.T, q_SxBxV[:-1].swapaxes(0, 1)
    valid_BxS = jnp.broadcast_to(alive_B[:, None], tokens_BxS.shape)
    hidden, target_cache = self.model.apply({"params": target}, state.target, tokens_BxS, valid_BxS, method="extend")
    logits_BxSxV = self.model.apply({"params": target}, hidden, method="logits")
    p_BxSxV = self._filter(logits_BxSxV.reshape(-1, logits_BxSxV.shape[-1])).reshape(logits_BxSxV.shape)
    accepts, last, rngs_B = (keys[:, i] for i in range(count + 1, count + 4))
    kept_B, next_B = self._accept(accepts, last, tokens_BxS[:, 1:], p_BxSxV, q_BxKxV)

    # A row gets its accepted drafts and the next token, up to its end and to as many as it may have.
    place = jnp.arange(count + 1)[None]
    drafts_BxS = jnp.concatenate([tokens_BxS[:, 1:], next_B[:, None]], axis=1)
    made_BxS = jnp.where(place < kept_B[:, None], drafts_BxS, next_B[:, None])
    ends = is_end(made_BxS, self.end)
    before = jnp.cumsum(ends, axis=1) - ends > 0
    mine = (place <= kept_B[:, None]) & (place < state.left_B[:, None]) & ~before
    made_BxS = jnp.where(mine, made_BxS, -1)
    ended_B = jnp.any(ends & mine, axis=1)
    left_B = jnp.where(ended_B, 0, state.left_B - jnp.sum(mine, axis=1))
    held_B = jnp.where(alive_B, kept_B + 1, 0)  # the token before the drafts, and those accepted
    caches = (_keep(cache, count + 1, held_B) for cache in (target_cache, draft_cache))
    state = _State(*caches, constrain(next_B), rngs_B, constrain(left_B))
    return state, constrain(made_BxS), constrain(jnp.where(alive_B, kept_B, 0))

  def _accept(
    self, accepts: jax.Array, last: jax.Array, drafts_BxK: jax.Array, p_BxSxV: jax.Array, q_BxKxV: jax.Array
  ) -> tuple[jax.Array, jax.Array]:
    """Returns how many drafts of a row are kept [B], and the token after them [B]; p, q: filtered logits."""
    count = drafts_BxK.shape[1]
    if self.sampling.temperature == 0:
      best_BxS = jnp.argmax(p_BxSxV, axis=-1).astype(jnp.int32)
      kept_B = _run(drafts_BxK == best_BxS[:, :-1])
      return kept_B, jnp.take_along_axis(best_BxS, kept_B[:, None], axis=1)[:, 0]
    p_BxSxV, q_BxKxV = jax.nn.softmax(p_BxSxV, axis=-1), jax.nn.softmax(q_BxKxV, axis=-1)
    of_draft = lambda x: jnp.take_along_axis(x[:, :count], drafts_BxK[..., None], axis=-1)[..., 0]  # noqa: E731
    u_BxK = jax.vmap(lambda key: jax.random.uniform(key, (count,)))(accepts)
    kept_B = _run(u_BxK * of_draft(q_BxKxV) < of_draft(p_BxSxV))
    q_BxSxV = jnp.pad(q_BxKxV, ((0, 0), (0, 1), (0, 0)))  # nothing was drafted after the last
    p_BxV, q_BxV = (jnp.take_along_axis(x, kept_B[:, None, None], axis=1)[:, 0] for x in (p_BxSxV, q_BxSxV))
    rest_BxV = jnp.maximum(p_BxV - q_BxV, 0)
    rest_BxV = jnp.where(jnp.any(rest_BxV > 0, axis=-1, keepdims=True), rest_BxV, p_BxV)  # p is q but for rounding
    return kept_B, jax.vmap(jax.random.categorical)(last, jnp.log(rest_BxV)).astype(jnp.int32)

  def _filter(self, logits_BxV: jax.Array) -> jax.Array:
    return self.sampling.filter(logits_BxV, jnp.zeros((len(logits_BxV), 1), bool))

  def _draw(self, rngs_B: jax.Array, filtered_BxV: jax.Array) -> jax.Array:
    if self.sampling.temperature == 0:
      return jnp.argmax(filtered_BxV, axis=-1).astype(jnp.int32)
    return jax.vmap(jax.random.categorical)(rngs_B, filtered_BxV).astype(jnp.int32)

  @functools.partial(jax.jit, static_argnums=0, donate_argnums=1)
  def _compact(self, state):
    return state.replace(target=compact(state.target), draft=compact(state.draft))


def _run(accepted_BxK: jax.Array) -> jax.Array:
  """Returns how many are accepted before the first that is not [B]."""
  return jnp.sum(jnp.cumprod(accepted_BxK.astype(jnp.int32), axis=1), axis=1)


def _keep(cache: Cache, length: int, kept_B: jax.Array) -> Cache:
  """Returns the cache without all but the first `kept_B` of each row's last `length` tokens."""
  start = cache.index - length
  slots_M = jnp.arange(cache.valid_BxM.shape[1])
  valid_BxM = cache.valid_BxM & (slots_M[None] < start + kept_B[:, None])
  return cache.replace(valid_BxM=valid_BxM, index=start + jnp.max(kept_B))


def compact(cache: Cache) -> Cache:
  """Returns the cache with the tokens of each row side by side in the first slots, so that the last ones are free.

  Rows with fewer tokens are padded on the left.
  """
  longest = jnp.max(jnp.sum(cache.valid_BxM, axis=1))
  order_BxM = jnp.argsort(cache.valid_BxM, axis=1, stable=True)  # free slots, then tokens in their order
  order_BxM = jnp.roll(order_BxM, longest - order_BxM.shape[1], axis=1)
  pick = lambda x, order: jnp.take_along_axis(x, order, axis=x.ndim - 1)  # noqa: E731
  layers = tuple(
    (pick(keys, order_BxM[:, None, None]), jnp.take_along_axis(values, order_BxM[:, None, :, None], axis=2))
    for keys, values in cache.layers
  )
  valid_BxM, positions_BxM = pick(cache.valid_BxM, order_BxM), pick(cache.positions_BxM, order_BxM)
  return cache.replace(layers=layers, valid_BxM=valid_BxM, positions_BxM=positions_BxM, index=longest)
