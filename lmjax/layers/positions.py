"""Rotary position embedding with the two ways of stretching it that published models use."""

import dataclasses
import math

import jax
import jax.numpy as jnp


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
    angles = positions_BxL[..., None, None].astype(jnp.float32) * self.frequencies(x_BxLxHxK.shape[-1])
    sin, cos = jnp.sin(angles), jnp.cos(angles)
    first, second = jnp.split(x_BxLxHxK.astype(jnp.float32), 2, axis=-1)
    turned = jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
    return turned.astype(x_BxLxHxK.dtype)
