"""Layer normalisation and its root-mean-square form, computed in float32 whatever the activations are."""

from functools import partial

import jax
import jax.numpy as jnp
from flax import linen as nn

from lmjax.layers.leaves import param


class LayerNorm(nn.Module):
  """(x - mean) / sqrt(variance + epsilon) * scale + bias, over the width (Ba et al., 2016, arXiv:1607.06450)."""

  epsilon: float = 1e-5
  bias: bool = True

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    y = x.astype(jnp.float32)
    y -= jnp.mean(y, -1, keepdims=True)
    y *= jax.lax.rsqrt(jnp.mean(y * y, -1, keepdims=True) + self.epsilon)
    y *= _by_width(param(self, "scale", nn.initializers.ones, ("width",), x.shape[-1:]), x.ndim)
    if self.bias:
      y += _by_width(param(self, "bias", nn.initializers.zeros, ("width",), x.shape[-1:]), x.ndim)
    return y.astype(x.dtype)


class RMSNorm(nn.Module):
  """x / sqrt(mean(x^2) + epsilon) * scale, over the width (Zhang and Sennrich, 2019, arXiv:1910.07467).

  The scale is `offset` + the parameter, which starts so that the scale is 1; Gemma's offset is 1.
  """

  epsilon: float = 1e-5
  offset: float = 0.0
  axis: str = "width"  # the logical name of the last axis

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    y = x.astype(jnp.float32)
    y *= jax.lax.rsqrt(jnp.mean(y * y, -1, keepdims=True) + self.epsilon)
    scale = param(self, "scale", nn.initializers.constant(1 - self.offset), (self.axis,), x.shape[-1:])
    y *= _by_width(scale + self.offset if self.offset else scale, x.ndim)
    return y.astype(x.dtype)


def _by_width(values_D: jax.Array, ndim: int) -> jax.Array:
  return values_D.reshape((1,) * (ndim - 1) + values_D.shape)


NORMS = {"layer": LayerNorm, "rms": RMSNorm, "rms_offset": partial(RMSNorm, offset=1.0)}
