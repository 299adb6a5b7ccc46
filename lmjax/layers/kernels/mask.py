"""Which tokens may attend to which."""

import jax
import jax.numpy as jnp
from flax import struct


@struct.dataclass
class Mask:
  """Who may attend to whom, said so that a kernel needs no array of length x length.

  A token attends within its own segment (packed document); if `causal`, to nothing after itself; with a `window`, to
  itself and the window - 1 tokens before; and only where `allowed` is true, an array after all, as a cache has it.
  `bias` is added to the scores: what a token thinks of another from their distance alone.
  """

  segments_BxL: jax.Array | None = None
  segments_BxM: jax.Array | None = None  # of the keys, where they are not the queries' own
  allowed_BxLxM: jax.Array | None = None
  bias_BxHxLxM: jax.Array | None = None
  causal: bool = struct.field(pytree_node=False, default=False)
  window: int | None = struct.field(pytree_node=False, default=None)

  def array(self, length: int, keys: int) -> jax.Array | None:
    """Returns mask_BxLxM of all but causality; None where everything is allowed."""
    found = [] if self.allowed_BxLxM is None else [self.allowed_BxLxM]
    if self.segments_BxL is not None:
      others = self.segments_BxL if self.segments_BxM is None else self.segments_BxM
      found.append(self.segments_BxL[:, :, None] == others[:, None, :])
    if self.window is not None:
      found.append((jnp.arange(length)[:, None] - jnp.arange(keys) < self.window)[None])
    return None if not found else jnp.logical_and(*found) if len(found) == 2 else found[0]
