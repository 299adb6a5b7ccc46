"""Sampling of many prompts by a batch of few rows: a row whose text has ended takes the next prompt."""

import collections
import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from lmjax.decode.sample import STEP, pad_prompts, pad_sources, prefill, reads_parts
from lmjax.decode.shared_prefix import PrefixSampler, common, few
from lmjax.layers.cache import Cache
from lmjax.layers.cross_block import CrossCache
from lmjax.utils.pytree import Tree

EVERY = 8  # tokens that are drawn between two times at which free rows take new prompts
SPARE = 4  # such times, at least, between two moves of the cache's slots


@dataclasses.dataclass
class _Job:
  """What a row is doing: the number of its prompt, the first slot that it uses, and how many tokens it has drawn.

  Slots are counted from the first one of all, although those that are not used any more are dropped.
  """

  prompt: int
  first: int
  drawn: int = 0


@dataclasses.dataclass(frozen=True)
class ContinuousSampler(PrefixSampler):
  """A `Sampler` with continuous batching (Yu et al., 2022, Orca): no row waits for the longest one of its batch.

  All rows write to the same slot of the cache in turn, and a new prompt is put into the slots before it. Where the last
  slot is filled, all move back over those that are not used any more. What all prompts begin with is read once.
  """

  def continue_all(
    self, params: Tree, prompts: Sequence[Sequence[int]], new: int, seeds: Sequence[int], rows: int, every: int = EVERY,
    sources: Sequence[Sequence[int]] | None = None, stopped: Callable[[int], bool] = lambda prompt: False,
  ) -> Iterator[tuple[int, np.ndarray, bool]]:  # fmt: skip
    """Yields (number of a prompt, its next tokens, whether they are the last), the same tokens as `tokens` draws.

    Args:
      params, prompts, new, seeds, sources: as of `tokens`; new is at least 1. Models are those that are `able`.
      rows: prompts that are continued at the same time, at most.
      every: tokens between two times at which rows are given to new prompts.
      stopped: whether a prompt needs no more tokens, asked after each yield.

    Raises:
      UserError: as of `tokens`.
    """
    every, padded = min(every, new), pad_sources(sources)
    ends = [min(prompts, key=len), max(prompts, key=len)]
    longest = index = pad_prompts(ends, new, self.max_tokens)[0].shape[1]
    slots = longest + new + max(SPARE * every, (longest + new) // 4)
    shared = few(common(prompts)) if sources is None else 0
    alike = dataclasses.replace(self, shared=shared)
    prefix = alike._read_prefix(params, np.array([prompts[0][:shared]], np.int32)) if shared else None

    def read(numbers: list[int], width: int, slots: int) -> Tree:
      """Returns the state of sampling after some prompts, padded to a width."""
      tokens, valid = pad_prompts([prompts[i] for i in numbers], new, self.max_tokens)
      tokens, valid = (np.pad(x, ((0, 0), (width - x.shape[1], 0))) for x in (tokens, valid))
      source, own = prefix if padded is None else tuple(x[numbers] for x in padded), alike
      if source is None:  # those of one call may still begin alike, as samples of one prompt do
        own = dataclasses.replace(self, shared=few(common([prompts[i] for i in numbers])))
      return own._prefill(params, tokens, valid, np.array([seeds[i] for i in numbers], np.uint32), slots, source)

    waiting = collections.deque(range(len(prompts)))
    jobs: list[_Job | None] = [None] * min(rows, len(prompts))
    least, state, dropped = max(len(jobs) // 4, 1), None, 0
    while waiting or any(jobs):
      places = [row for row, job in enumerate(jobs) if job is None][: len(waiting)]
      if places and len(places) >= min(least, len(waiting)):
        places = places if state is None else places[:least]
        numbers = [waiting.popleft() for _ in places]
        if state is None:
          width, begun = longest, read(numbers, longest, slots)
          state = begun
        else:  # few widths are compiled, and one number of prompts: the first one of them fills the rest
          more = least - len(numbers)
          width = min(_round_up(max(len(prompts[i]) for i in numbers)), longest)
          begun = read(numbers + numbers[:1] * more, width, width)
          state = _insert(state, begun, np.array(places + places[:1] * more), index)
        drawn, alive = np.asarray(begun.tokens_B)[:, None], np.asarray(begun.alive_B)
        for row, number, tokens, on in zip(places, numbers, drawn, alive, strict=False):
          jobs[row] = _Job(number, dropped + index - width)
          yield from _hand(jobs, row, tokens, bool(on), new, stopped)
        continue  # some may have ended with their first token
      if index + every > slots:
        # There is space before the index for the longest prompt.
        unused = min(index - longest, *(job.first - dropped for job in jobs if job))
        state, index, dropped = _move_back(state, unused), index - unused, dropped + unused
      state, drawn = self._extend(params, state, every)
      drawn, alive, index = np.asarray(drawn), np.asarray(state.alive_B), index + every
      for row in [row for row, job in enumerate(jobs) if job]:
        yield from _hand(jobs, row, drawn[row], bool(alive[row]), new, stopped)

  @functools.partial(jax.jit, static_argnums=0)
  def _read_prefix(self, params, tokens_1xL):
    valid_1xL = jnp.ones(tokens_1xL.shape, bool)
    return prefill(self.model, params, tokens_1xL, valid_1xL, tokens_1xL.shape[1], None)[1]

  def _read(self, params, tokens_BxL, valid_BxL, max_tokens, source):
    if not self.shared or source is None:
      return super()._read(params, tokens_BxL, valid_BxL, max_tokens, source)
    return self._read_rest(params, _widen(source, max_tokens), tokens_BxL, valid_BxL)


def able(model: nn.Module) -> bool:
  """Returns whether the prompts of a model may begin at any slot."""
  return model.kind == "encoder_decoder" or reads_parts(model)


def _round_up(length: int) -> int:
  """Returns the next of 16, 32, 48, 64, 96, 128, 192 ... tokens."""
  size = STEP
  while 2 * size <= length:
    size *= 2
  return next(each for each in (size, size * 3 // 2, size * 2) if each >= length and each % STEP == 0)


def _hand(
  jobs: list[_Job | None], row: int, tokens: np.ndarray, alive: bool, new: int, stopped: Callable[[int], bool]
) -> Iterator[tuple[int, np.ndarray, bool]]:
  """Yields the tokens that a row has drawn, and frees the row after its last ones."""
  job = jobs[row]
  assert job is not None
  tokens = tokens[tokens >= 0][: new - job.drawn]
  job.drawn += len(tokens)
  last = not alive or job.drawn >= new
  yield job.prompt, tokens, last
  if last or stopped(job.prompt):
    jobs[row] = None


@functools.partial(jax.jit, donate_argnums=0)
def _insert(state: Tree, fresh: Tree, rows_K: jax.Array, index: jax.Array) -> Tree:
  """Returns the state of sampling with some rows replaced by fresh ones, whose slots end before the index."""
  put = lambda old, new: old.at[rows_K].set(new)  # noqa: E731

  def put_slots(old, new, axis):
    start = [index - new.shape[axis] if i == axis else 0 for i in range(old.ndim)]
    sizes = [new.shape[axis] if i == axis else size for i, size in enumerate(old.shape)]
    return jax.lax.dynamic_update_slice(old, put(jax.lax.dynamic_slice(old, start, sizes), new), start)

  def put_cache(old, new):
    if isinstance(old, CrossCache):
      return CrossCache(
        put_cache(old.self_cache, new.self_cache),
        jax.tree.map(put, old.layers, new.layers),
        put(old.valid_BxM, new.valid_BxM),
      )
    if not isinstance(old, Cache):  # the state of an LSTM has no slots
      return jax.tree.map(put, old, new)
    return Cache(
      tuple(
        (put_slots(*keys, 3), put_slots(*values, 2))
        for keys, values in (zip(*pair, strict=True) for pair in zip(old.layers, new.layers, strict=True))
      ),
      put_slots(old.valid_BxM.at[rows_K].set(False), new.valid_BxM, 1),
      put_slots(old.positions_BxM, new.positions_BxM, 1),
      old.index,
    )

  others = jax.tree.map(put, state.replace(cache=None), fresh.replace(cache=None))
  return others.replace(cache=put_cache(state.cache, fresh.cache))


@functools.partial(jax.jit, donate_argnums=0)
def _move_back(state: Tree, unused: jax.Array) -> Tree:
  """Returns the state of sampling without the first slots of its cache; as many at the end become free."""

  def move(cache):
    if isinstance(cache, CrossCache):
      return cache.replace(self_cache=move(cache.self_cache))
    if not isinstance(cache, Cache):
      return cache
    back = functools.partial(jnp.roll, shift=-unused)
    return Cache(
      tuple((back(keys, axis=3), back(values, axis=2)) for keys, values in cache.layers),
      back(cache.valid_BxM, axis=1),  # only rows that wait for a prompt have tokens in the slots that come round
      back(cache.positions_BxM, axis=1),
      cache.index - unused,
    )

  return state.replace(cache=move(state.cache))


def _widen(cache: Tree, slots: int) -> Tree:
  """Returns a cache with more slots."""
  if not isinstance(cache, Cache):
    return cache

  def pad(x, axis):
    return jnp.pad(x, [(0, slots - x.shape[i] if i == axis else 0) for i in range(x.ndim)])

  return Cache(
    tuple((pad(keys, 3), pad(values, 2)) for keys, values in cache.layers),
    pad(cache.valid_BxM, 1),
    pad(cache.positions_BxM, 1),
    cache.index,
  )
