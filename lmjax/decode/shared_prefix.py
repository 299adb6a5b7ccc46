"""Sampling after prompts that begin alike: what they share is read once, not for every row."""

import dataclasses
from collections.abc import Iterator, Sequence

import jax.numpy as jnp
import numpy as np

from lmjax.decode.sample import PART, Sampler, prefill, reads_parts
from lmjax.utils.pytree import Tree

LEAST = 64  # tokens that are shared; fewer are read again


@dataclasses.dataclass(frozen=True)
class PrefixSampler(Sampler):
  """A `Sampler` that reads the first tokens of several prompts once where all prompts have them.

  As of several samples of a prompt, or of questions after the same examples. The continuations are the same.

  shared: tokens that all prompts begin with; `tokens` sets it.
  """

  shared: int = 0

  def tokens(
    self, params: Tree, prompts: Sequence[Sequence[int]], new: int, seeds: Sequence[int], every: int = 1,
    sources: Sequence[Sequence[int]] | None = None,
  ) -> Iterator[np.ndarray]:  # fmt: skip
    shared = few(common(prompts)) if sources is None and reads_parts(self.model) else 0
    own = dataclasses.replace(self, shared=shared)
    yield from Sampler.tokens(own, params, prompts, new, seeds, every, sources)

  def _extend(self, params, decoding, count):
    return Sampler._extend(dataclasses.replace(self, shared=0), params, decoding, count)  # compiled once for all

  def _read(self, params, tokens_BxL, valid_BxL, max_tokens, source):
    if not self.shared:
      return super()._read(params, tokens_BxL, valid_BxL, max_tokens, source)
    # Rows are padded on the left: their first `shared` tokens begin at different columns.
    first_1xL = jnp.roll(tokens_BxL[:1], -jnp.argmax(valid_BxL[0]), axis=1)[:, : self.shared]
    _, cache = prefill(self.model, params, first_1xL, jnp.ones(first_1xL.shape, bool), max_tokens, None)
    return self._read_rest(params, cache, tokens_BxL, valid_BxL)

  def _read_rest(self, params, cache, tokens_BxL, valid_BxL):
    """Returns the final vectors and the cache of prompts whose first `shared` tokens are in a cache of one row."""
    cache = cache.reorder(jnp.zeros(len(tokens_BxL), jnp.int32))
    rest_BxL = valid_BxL & (jnp.cumsum(valid_BxL, axis=1) > self.shared)
    hidden, count = None, tokens_BxL.shape[1]
    for end in range(self.shared + (count - self.shared - 1) % PART + 1, count + 1, PART):
      part = slice(max(end - PART, self.shared), end)
      hidden, cache = self.model.apply(
        {"params": params}, cache, tokens_BxL[:, part], rest_BxL[:, part], method="extend"
      )
    return hidden, cache


def few(tokens: int) -> int:
  """Returns how many tokens are shared: 0, 64, 96, 128, 192 ..., few numbers, since each is compiled."""
  size = LEAST
  while 2 * size <= tokens:
    size *= 2
  return 0 if tokens < LEAST else size * 3 // 2 if size * 3 // 2 <= tokens else size


def common(prompts: Sequence[Sequence[int]]) -> int:
  """Returns how many tokens all of several prompts begin with, of each all but the last at most; 0 for one prompt."""
  if len(prompts) < 2:
    return 0
  first, count = list(prompts[0]), max(min(map(len, prompts)) - 1, 0)
  for prompt in prompts:
    if list(prompt[:count]) != first[:count]:
      count = next((i for i in range(count) if prompt[i] != first[i]), count)
  return count
