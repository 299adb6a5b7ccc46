"""Positions: relative bias, and sinusoids."""

import math

import jax
import jax.numpy as jnp
from flax import linen as nn

from lmjax.layers import leaves


def bucket(distance: jax.Array, num_buckets: int, max_distance: int, causal: bool) -> jax.Array:
  """Returns the bucket of (position of the key - position of the query), from 0.

  Half of the buckets are for single distances, the others widen logarithmically up to `max_distance`, and the last
  holds everything beyond; if not `causal`, one half of all is for what comes later (Raffel et al., 2020,
  arXiv:1910.10683).
  """
  first = jnp.zeros_like(distance)
  if causal:
    distance = jnp.maximum(-distance, 0)
  else:
    num_buckets //= 2
    first = jnp.where(distance > 0, num_buckets, 0)
    distance = jnp.abs(distance)
  exact = num_buckets // 2
  ratio = jnp.log(jnp.maximum(distance, 1).astype(jnp.float32) / exact) / math.log(max_distance / exact)
  wide = jnp.minimum(exact + (ratio * (num_buckets - exact)).astype(jnp.int32), num_buckets - 1)
  return first + jnp.where(distance < exact, distance, wide)


class RelativeBias(nn.Module):
  """A learned bias for every head and bucket of distance, added to the scores of all layers."""

  heads: int
  num_buckets: int = 32
  max_distance: int = 128
  causal: bool = False

  @nn.compact
  def __call__(self, positions_BxL: jax.Array, positions_BxM: jax.Array) -> jax.Array:
    """Returns the bias [B, H, L, M], float32."""
    init = nn.initializers.normal(0.1)
    table = leaves.param(self, "table", init, (None, "heads"), (self.num_buckets, self.heads))
    distance_BxLxM = positions_BxM[:, None, :] - positions_BxL[:, :, None]
    numbers = bucket(distance_BxLxM, self.num_buckets, self.max_distance, self.causal)
    return leaves.take(table, numbers, jnp.float32).transpose(0, 3, 1, 2)


def sinusoids(positions_BxL: jax.Array, width: int) -> jax.Array:
  """Returns sin(p w_i) and cos(p w_i), w_i = 10000^(-2i / width), side by side: [B, L, D] (Vaswani et al., 2017)."""
  rates = 10_000.0 ** (-jnp.arange(0, width, 2, dtype=jnp.float32) / width)
  angles = positions_BxL[..., None].astype(jnp.float32) * rates[None, None]
  return jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=-1)[..., :width]
