"""The head of a value function."""

import jax
import jax.numpy as jnp
from flax import linen as nn

from lmjax.layers.leaves import dense, param


class Value(nn.Module):
  """A number for each vector, 0 at first: what a policy expects from there on."""

  @nn.compact
  def __call__(self, x_BxLxD: jax.Array) -> jax.Array:
    """Returns float32 values [B, L]."""
    weights_D = dense(param(self, "weights", nn.initializers.zeros, ("width",), (x_BxLxD.shape[-1],)))
    bias = dense(param(self, "bias", nn.initializers.zeros, (), ()))
    return jnp.einsum("bld,d->bl", x_BxLxD.astype(jnp.float32), weights_D, precision="highest") + bias
