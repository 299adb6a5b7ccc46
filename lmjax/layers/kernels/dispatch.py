"""Attention by the kernel that suits the platform."""

import jax
import jax.numpy as jnp

from lmjax.layers.backend import attention_implementation
from lmjax.layers.kernels.cpu import softmax_attention, softmax_attention_forward
from lmjax.layers.kernels.mask import Mask
from lmjax.utils import names


def prepare_mask(mask: Mask, length: int, keys: int | None = None) -> Mask:
  """Returns a mask as the platform's kernel reads it: for all but splash attention, one array for all layers."""
  keys = length if keys is None else keys
  if attention_implementation(length, keys, mask.dense, jnp.float32) == "splash":
    return mask
  return Mask(allowed_BxLxM=mask.array(length, keys), bias_BxHxLxM=mask.bias_BxHxLxM, causal=mask.triangular)


def attend(q_BxLxHxK: jax.Array, k_BxMxGxK: jax.Array, v_BxMxGxK: jax.Array, mask: Mask) -> jax.Array:
  """Returns softmax(q k / sqrt(K)) v, [B, L, H, K]; H / G query heads share each key/value head.

  Scores with a cap are computed by the same code on all platforms.
  """
  length, keys = q_BxLxHxK.shape[1], k_BxMxGxK.shape[1]
  implementation = attention_implementation(length, keys, mask.dense, q_BxLxHxK.dtype, q_BxLxHxK.shape[-1])
  if implementation == "splash" and mask.cap is None:
    splash = names.load("lmjax.layers.kernels.splash:splash")  # on TPUs alone
    return splash(q_BxLxHxK, k_BxMxGxK, v_BxMxGxK, mask)
  allowed, bias = mask.array(length, keys), mask.bias_BxHxLxM
  if mask.cap is not None:
    return softmax_attention_forward(q_BxLxHxK, k_BxMxGxK, v_BxMxGxK, bias, allowed, mask.triangular, mask.cap)[0]
  if implementation == "cpu":
    return softmax_attention(q_BxLxHxK, k_BxMxGxK, v_BxMxGxK, bias, allowed, mask.triangular)
  return jax.nn.dot_product_attention(
    q_BxLxHxK, k_BxMxGxK, v_BxMxGxK, bias=bias, mask=None if allowed is None else allowed[:, None],
    is_causal=mask.triangular, implementation=implementation,
  )  # fmt: skip


def attention_weights(q_BxLxHxK: jax.Array, k_BxMxGxK: jax.Array, mask: Mask) -> jax.Array:
  """Returns the attention weights [B, H, L, M] in float32, for inspection and distillation."""
  allowed, bias = mask.array(q_BxLxHxK.shape[1], k_BxMxGxK.shape[1]), mask.bias_BxHxLxM
  _, saved = softmax_attention_forward(q_BxLxHxK, k_BxMxGxK, k_BxMxGxK, bias, allowed, mask.triangular, mask.cap)
  *_, weights, total, _ = saved
  batch, length, heads, _ = q_BxLxHxK.shape
  return (weights / total).reshape(batch, heads, length, -1)
