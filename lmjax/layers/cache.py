"""The key/value cache of decoding: static shapes, one buffer a layer, so that every write is in place."""

import jax
import jax.numpy as jnp
from flax import struct


@struct.dataclass
class Cache:
  """What a decoder remembers of `M` token slots.

  Tokens fill slots in the order they come; `valid` says which of them count. Rows of different prompt lengths are
  padded on the left, or anywhere: positions count valid tokens only, so padding changes no output.
  """

  layers: tuple[tuple[jax.Array, jax.Array], ...]  # (keys, values) of each layer, both BxMxGxK
  valid_BxM: jax.Array
  positions_BxM: jax.Array
  index: jax.Array  # slots filled so far

  @classmethod
  def empty(cls, depth: int, batch: int, slots: int, groups: int, head_size: int, dtype=jnp.float32) -> "Cache":
    """Returns a cache of `slots` free slots for `batch` rows."""

    def buffer():
      return jnp.zeros((batch, slots, groups, head_size), dtype)

    return cls(
      layers=tuple((buffer(), buffer()) for _ in range(depth)),
      valid_BxM=jnp.zeros((batch, slots), bool),
      positions_BxM=jnp.zeros((batch, slots), jnp.int32),
      index=jnp.zeros((), jnp.int32),
    )

  def reserve(self, valid_BxL: jax.Array) -> tuple["Cache", jax.Array, jax.Array]:
    """Takes the next L slots for tokens of which some are valid.

    Returns:
      the cache, its index still before the new slots; the tokens' positions_BxL; the mask_BxLxM of the slots each
      token may attend to: the valid ones up to its own.
    """
    length, slots = valid_BxL.shape[1], self.valid_BxM.shape[1]
    before = jnp.sum(self.valid_BxM, axis=1, keepdims=True, dtype=jnp.int32)
    positions_BxL = jnp.maximum(before + jnp.cumsum(valid_BxL, axis=1, dtype=jnp.int32) - 1, 0)
    cache = self.replace(
      valid_BxM=jax.lax.dynamic_update_slice(self.valid_BxM, valid_BxL, (0, self.index)),
      positions_BxM=jax.lax.dynamic_update_slice(self.positions_BxM, positions_BxL, (0, self.index)),
    )
    reach_LxM = jnp.arange(slots)[None, :] <= self.index + jnp.arange(length)[:, None]
    return cache, positions_BxL, cache.valid_BxM[:, None, :] & reach_LxM[None]

  def write(self, layer: int, k_BxLxGxK: jax.Array, v_BxLxGxK: jax.Array) -> "Cache":
    """Puts the keys and values of one layer into the reserved slots."""
    start = (0, self.index, 0, 0)
    keys, values = self.layers[layer]
    keys = jax.lax.dynamic_update_slice(keys, k_BxLxGxK.astype(keys.dtype), start)
    values = jax.lax.dynamic_update_slice(values, v_BxLxGxK.astype(values.dtype), start)
    return self.replace(layers=(*self.layers[:layer], (keys, values), *self.layers[layer + 1 :]))

  def advance(self, length: int) -> "Cache":
    """Closes the reserved slots."""
    return self.replace(index=self.index + length)

  def reorder(self, rows_B: jax.Array) -> "Cache":
    """Returns the cache with row i taken from row rows_B[i], as beams and repeated samples need."""
    pick = lambda x: jnp.take(x, rows_B, axis=0)  # noqa: E731
    return self.replace(
      layers=jax.tree.map(pick, self.layers),
      valid_BxM=pick(self.valid_BxM),
      positions_BxM=pick(self.positions_BxM),
    )
