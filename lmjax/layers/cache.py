"""The key/value cache of decoding: static shapes, one buffer a layer, so that every write is in place."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import struct


class Cache(struct.PyTreeNode):
  """The keys and values of up to `M` tokens.

  Tokens fill the slots in order; `valid` marks those that count. Rows of different prompt lengths are
  padded on the left, or anywhere: positions count valid tokens only, so padding changes no output.
  """

  # Keys BxGxKxM and values BxGxMxK of each layer: as the products of attention read them. Kept as BxMxGxK, they were
  # transposed whole for every new token, 17 % of the time at batch 8 on a CPU.
  layers: tuple[tuple[jax.Array, jax.Array], ...]
  valid_BxM: jax.Array
  positions_BxM: jax.Array
  index: jax.Array  # slots filled so far

  @classmethod
  def empty(
    cls, depth: int, batch: int, max_tokens: int, kv_heads: int, head_size: int, dtype: Any = jnp.float32
  ) -> "Cache":
    """Returns an empty cache of `max_tokens` slots for `batch` rows."""

    def buffer(*shape):
      return jnp.zeros((batch, kv_heads, *shape), dtype)

    return cls(
      layers=tuple((buffer(head_size, max_tokens), buffer(max_tokens, head_size)) for _ in range(depth)),
      valid_BxM=jnp.zeros((batch, max_tokens), bool),
      positions_BxM=jnp.zeros((batch, max_tokens), jnp.int32),
      index=jnp.zeros((), jnp.int32),
    )

  def reserve(self, valid_BxL: jax.Array, prefix_BxL: jax.Array | None = None) -> tuple["Cache", jax.Array, jax.Array]:
    """Takes the next L slots for tokens of which some are valid.

    Returns:
      the cache, its index still before the new slots; the tokens' positions_BxL; the mask_BxLxM of the slots that each
      token may attend to: the valid ones up to its own, and those of a prefix.
    """
    length, max_tokens = valid_BxL.shape[1], self.valid_BxM.shape[1]
    before = jnp.sum(self.valid_BxM, axis=1, keepdims=True, dtype=jnp.int32)
    positions_BxL = jnp.maximum(before + jnp.cumsum(valid_BxL, axis=1, dtype=jnp.int32) - 1, 0)
    cache = self.replace(
      valid_BxM=jax.lax.dynamic_update_slice(self.valid_BxM, valid_BxL, (0, self.index)),
      positions_BxM=jax.lax.dynamic_update_slice(self.positions_BxM, positions_BxL, (0, self.index)),
    )
    reach_LxM = jnp.arange(max_tokens)[None, :] <= self.index + jnp.arange(length)[:, None]
    reach = reach_LxM[None]
    if prefix_BxL is not None:
      prefix_BxM = jax.lax.dynamic_update_slice(jnp.zeros_like(cache.valid_BxM), prefix_BxL, (0, self.index))
      reach = reach | prefix_BxM[:, None, :]
    return cache, positions_BxL, cache.valid_BxM[:, None, :] & reach

  def write(self, layer: int, k_BxLxGxK: jax.Array, v_BxLxGxK: jax.Array) -> "Cache":
    """Puts the keys and values of one layer into the reserved slots."""
    keys, values = self.layers[layer]
    k_BxGxKxL = k_BxLxGxK.transpose(0, 2, 3, 1).astype(keys.dtype)
    v_BxGxLxK = v_BxLxGxK.transpose(0, 2, 1, 3).astype(values.dtype)
    keys = jax.lax.dynamic_update_slice(keys, k_BxGxKxL, (0, 0, 0, self.index))
    values = jax.lax.dynamic_update_slice(values, v_BxGxLxK, (0, 0, self.index, 0))
    return self.replace(layers=(*self.layers[:layer], (keys, values), *self.layers[layer + 1 :]))

  def read(self, layer: int) -> tuple[jax.Array, jax.Array]:
    """Returns the keys and values of one layer, both [B, M, G, K]."""
    keys, values = self.layers[layer]
    return keys.transpose(0, 3, 1, 2), values.transpose(0, 2, 1, 3)

  def advance(self, length: int) -> "Cache":
    """Moves the index behind the reserved slots."""
    return self.replace(index=self.index + length)

  def reorder(self, rows_B: jax.Array) -> "Cache":
    """Returns the cache with row i taken from row rows_B[i], as beams and repeated samples need."""
    pick = lambda x: jnp.take(x, rows_B, axis=0)  # noqa: E731
    return self.replace(
      layers=jax.tree.map(pick, self.layers),
      valid_BxM=pick(self.valid_BxM),
      positions_BxM=pick(self.positions_BxM),
    )
