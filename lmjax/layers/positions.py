"""Rotary positions, and the ways to extend them to sequences longer than those of training."""

import dataclasses
import math

import jax
import jax.numpy as jnp

SCALINGS = ("none", "linear", "dynamic", "yarn", "longrope", "llama3")


@dataclasses.dataclass(frozen=True)
class Rotary:
  """Rotation of query and key pairs by angles position * base^(-2i/K) (Su et al., 2021, arXiv:2104.09864).

  scaling: how the frequencies are changed. `none`; `linear` divides all by `factor` (Chen et al., 2023,
  arXiv:2306.15595); `llama3` divides those with fewer than `low` turns within `original` tokens, keeps those with more
  than `high`, and interpolates between (Llama 3.1); `yarn` does the same, linearly in their number i instead of their
  turns (Peng et al., 2023, arXiv:2309.00071); `dynamic` enlarges the base by the length of the input where that is
  more than `original`; `longrope` divides by `long` in inputs of more than `original` tokens and by `short` in others,
  one number per frequency (Ding et al., 2024, arXiv:2402.13753).

  original: the length the model was first trained on, in tokens. amplitude: a factor of both sine and cosine.
  truncate: yarn's interval is widened to whole numbers. fraction: of each head's elements, the first ones, that are
  turned.
  """

  base: float = 10_000.0
  scaling: str = "none"
  factor: float = 1.0
  low: float = 1.0
  high: float = 4.0
  original: int = 8192
  amplitude: float = 1.0
  truncate: bool = True
  fraction: float = 1.0
  short: tuple[float, ...] = ()
  long: tuple[float, ...] = ()

  def __post_init__(self):
    if self.scaling not in SCALINGS:
      raise ValueError(f"rotary scaling is one of {', '.join(SCALINGS)}, not {self.scaling!r}")
    for name in ("short", "long"):
      object.__setattr__(self, name, tuple(getattr(self, name)))

  def frequencies(self, head_size: int, length: jax.Array | int = 0) -> jax.Array:
    """Returns radians per position, shape [head_size / 2], in an input of `length` tokens."""
    base = self.base
    if self.scaling == "dynamic":
      longer = jnp.maximum(length, self.original) / self.original
      base *= (self.factor * longer - (self.factor - 1)) ** (head_size / (head_size - 2))
    frequency = base ** (-jnp.arange(0, head_size, 2, dtype=jnp.float32) / head_size)
    if self.scaling == "linear":
      return frequency / self.factor
    if self.scaling == "longrope":
      return frequency / jnp.where(length > self.original, jnp.array(self.long), jnp.array(self.short))
    if self.scaling in ("llama3", "yarn"):
      keep = jnp.clip(self._keep(frequency, head_size), 0.0, 1.0)
      return frequency * (keep + (1 - keep) / self.factor)
    return frequency

  def _keep(self, frequency: jax.Array, head_size: int) -> jax.Array:
    """Returns how much of each frequency is kept, 1 for all of it, to be clipped."""
    if self.scaling == "llama3":
      turns = self.original * frequency / (2 * math.pi)
      return (turns - self.low) / (self.high - self.low)
    first, last = (
      head_size * math.log(self.original / (turns * 2 * math.pi)) / (2 * math.log(self.base))
      for turns in (self.high, self.low)
    )
    if self.truncate:
      first, last = math.floor(first), math.ceil(last)
    first, last = max(first, 0), min(last, head_size - 1)
    return 1 - (jnp.arange(head_size // 2) - first) / ((last - first) or 0.001)

  def __call__(self, x_BxLxHxK: jax.Array, positions_BxL: jax.Array) -> jax.Array:
    """Returns x with dimension i of the first half rotated against dimension i of the second."""
    size = int(self.fraction * x_BxLxHxK.shape[-1])
    if size < x_BxLxHxK.shape[-1]:
      whole = dataclasses.replace(self, fraction=1.0)(x_BxLxHxK[..., :size], positions_BxL)
      return jnp.concatenate([whole, x_BxLxHxK[..., size:]], axis=-1)
    frequencies = self.frequencies(size, jnp.max(positions_BxL) + 1)
    angles = positions_BxL[..., None, None].astype(jnp.float32) * frequencies[None, None, None]
    sin, cos = self.amplitude * jnp.sin(angles), self.amplitude * jnp.cos(angles)
    first, second = jnp.split(x_BxLxHxK.astype(jnp.float32), 2, axis=-1)
    turned = jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
    return turned.astype(x_BxLxHxK.dtype)
