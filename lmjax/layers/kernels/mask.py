"""Which tokens may attend to which."""

import functools

import jax
import jax.numpy as jnp
from flax import struct


@struct.dataclass
class Mask:
  """An attention mask described by its parts, so that a kernel needs no array of length x length.

  A token attends within its own segment (packed document); if `causal`, to nothing after itself but the tokens of a
  `prefix`; with a `window`, to
  itself and the window - 1 tokens before it; and only where `allowed`, an array, is true. With a `cap`, scores s become
  cap * tanh(s / cap) (Gemma 2, arXiv:2408.00118). Then `bias` is added to them.
  """

  segments_BxL: jax.Array | None = None
  segments_BxM: jax.Array | None = None  # of the keys, where they differ from those of the queries
  allowed_BxLxM: jax.Array | None = None
  bias_BxHxLxM: jax.Array | None = None
  prefix_BxM: jax.Array | None = None  # of the keys: True where earlier tokens attend to them too
  causal: bool = struct.field(pytree_node=False, default=False)
  window: int | None = struct.field(pytree_node=False, default=None)
  cap: float | None = struct.field(pytree_node=False, default=None)

  @property
  def dense(self) -> bool:
    """Whether a part of it is an array of length x length."""
    parts = self.allowed_BxLxM, self.bias_BxHxLxM, self.prefix_BxM
    return any(part is not None for part in parts)

  @property
  def triangular(self) -> bool:
    """Whether causality is a part of it that `array` does not have."""
    return self.causal and self.prefix_BxM is None

  def array(self, length: int, keys: int) -> jax.Array | None:
    """Returns mask_BxLxM of all parts but causality without a prefix; None where everything is allowed."""
    masks = [] if self.allowed_BxLxM is None else [self.allowed_BxLxM]
    if self.segments_BxL is not None:
      others = self.segments_BxL if self.segments_BxM is None else self.segments_BxM
      masks.append(self.segments_BxL[:, :, None] == others[:, None, :])
    if self.causal and self.prefix_BxM is not None:
      masks.append(jnp.tril(jnp.ones((length, keys), bool))[None] | self.prefix_BxM[:, None, :])
    if self.window is not None:
      masks.append((jnp.arange(length)[:, None] - jnp.arange(keys)[None, :] < self.window)[None])
    return functools.reduce(jnp.logical_and, masks) if masks else None
