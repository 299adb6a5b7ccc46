"""What depends on the platform of the mesh's devices (which may be absent while compiling for them): attention kernels,
and what a compiler must be told.
"""

import jax
import jax.numpy as jnp

from lmjax.layers.backend import platform
from lmjax.layers.kernels.cpu import softmax_attention, softmax_attention_forward
from lmjax.layers.kernels.mask import Mask
from lmjax.layers.kernels.splash import splash, splash_fits


def prepare_mask(mask: Mask, length: int, keys: int | None = None) -> Mask:
  """Returns a mask as the platform's kernel reads it: for XLA's, an array made once."""
  keys = length if keys is None else keys
  if splash_fits(length, keys, mask):
    return mask
  return Mask(allowed_BxLxM=mask.array(length, keys), bias_BxHxLxM=mask.bias_BxHxLxM, causal=mask.causal)


def attend(q_BxLxHxK: jax.Array, k_BxMxGxK: jax.Array, v_BxMxGxK: jax.Array, mask: Mask) -> jax.Array:
  """Returns softmax(q k / sqrt(K)) v, [B, L, H, K]; H / G query heads share each key/value head."""
  length, keys = q_BxLxHxK.shape[1], k_BxMxGxK.shape[1]
  if splash_fits(length, keys, mask):
    return splash(q_BxLxHxK, k_BxMxGxK, v_BxMxGxK, mask)
  allowed = mask.array(length, keys)
  if platform() == "cpu" and length > 1:  # one token's keys are best read as the cache has them
    return softmax_attention(q_BxLxHxK, k_BxMxGxK, v_BxMxGxK, mask.bias_BxHxLxM, allowed, mask.causal)
  half = q_BxLxHxK.dtype in (jnp.bfloat16, jnp.float16)
  return jax.nn.dot_product_attention(
    q_BxLxHxK,
    k_BxMxGxK,
    v_BxMxGxK,
    bias=mask.bias_BxHxLxM,
    mask=None if allowed is None else allowed[:, None],
    is_causal=mask.causal,
    implementation="cudnn" if platform() == "gpu" and half else "xla",
  )


def attention_weights(q_BxLxHxK: jax.Array, k_BxMxGxK: jax.Array, mask: Mask) -> jax.Array:
  """Returns the attention weights [B, H, L, M] in float32, for those who want to look at them."""
  allowed = mask.array(q_BxLxHxK.shape[1], k_BxMxGxK.shape[1])
  _, saved = softmax_attention_forward(q_BxLxHxK, k_BxMxGxK, k_BxMxGxK, mask.bias_BxHxLxM, allowed, mask.causal)
  *_, weights, total, _ = saved
  batch, length, heads, _ = q_BxLxHxK.shape
  return (weights / total).reshape(batch, heads, length, -1)
