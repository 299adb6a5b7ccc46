"""Positions: rotary embedding and the two ways to extend it, relative bias, sinusoids."""

import dataclasses
import math

import jax
import jax.numpy as jnp
from flax import linen as nn

from lmjax.layers import leaves


@dataclasses.dataclass(frozen=True)
class Rotary:
  """Rotation of query and key pairs by angles position * base^(-2i/K) (Su et al., 2021, arXiv:2104.09864).

  scaling: `none`; `linear` divides every frequency by `factor` (Chen et al., 2023, arXiv:2306.15595); `llama3` divides
  only wavelengths longer than `original / low`, keeps those shorter than `original / high`, and interpolates between
  (Llama 3.1). `original` is the length the model was first trained on, in tokens.
  """

  base: float = 10_000.0
  scaling: str = "none"
  factor: float = 1.0
  low: float = 1.0
  high: float = 4.0
  original: int = 8192

  def __post_init__(self):
    if self.scaling not in ("none", "linear", "llama3"):
      raise ValueError(f"rotary scaling is none, linear or llama3, not {self.scaling!r}")

  def frequencies(self, head_size: int) -> jax.Array:
    """Returns radians per position, shape [head_size / 2]."""
    frequency = self.base ** (-jnp.arange(0, head_size, 2, dtype=jnp.float32) / head_size)
    if self.scaling == "linear":
      return frequency / self.factor
    if self.scaling == "llama3":
      wavelength = 2 * math.pi / frequency
      keep = (self.original / wavelength - self.low) / (self.high - self.low)
      keep = jnp.clip(keep, 0.0, 1.0)
      return frequency * (keep + (1 - keep) / self.factor)
    return frequency

  def __call__(self, x_BxLxHxK: jax.Array, positions_BxL: jax.Array) -> jax.Array:
    """Returns x with dimension i of the first half rotated against dimension i of the second."""
    frequencies = self.frequencies(x_BxLxHxK.shape[-1])
    angles = positions_BxL[..., None, None].astype(jnp.float32) * frequencies[None, None, None]
    sin, cos = jnp.sin(angles), jnp.cos(angles)
    first, second = jnp.split(x_BxLxHxK.astype(jnp.float32), 2, axis=-1)
    turned = jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
    return turned.astype(x_BxLxHxK.dtype)


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
