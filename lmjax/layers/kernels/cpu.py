"""Softmax attention for CPUs, with a gradient written out."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from lmjax.layers.backend import barrier, einsum_f32


@partial(jax.custom_vjp, nondiff_argnums=(5,))
def softmax_attention(
  q_BxLxHxK: jax.Array, k_BxMxGxK: jax.Array, v_BxMxGxK: jax.Array, bias_BxHxLxM: jax.Array | None,
  allowed_BxLxM: jax.Array | None, causal: bool,
) -> jax.Array:  # fmt: skip
  """`attend` with a gradient written out, on a CPU twice as fast as that of jax.nn.dot_product_attention.

  With p = softmax(s) and o = p v, ds = p (dp - sum dp p), and the sum over all keys is do . o, one vector's length
  (Dao et al., 2022, arXiv:2205.14135, appendix B.2). A token that may attend to nothing gets the mean of all values.
  """
  return softmax_attention_forward(q_BxLxHxK, k_BxMxGxK, v_BxMxGxK, bias_BxHxLxM, allowed_BxLxM, causal)[0]


def _heads_first(x_BxLxHxK, groups):
  """Returns [B, G, H / G * L, K]: the queries that share a key head one after the other."""
  batch, length, heads, size = x_BxLxHxK.shape
  return x_BxLxHxK.reshape(batch, length, groups, -1, size).transpose(0, 2, 3, 1, 4).reshape(batch, groups, -1, size)


def _heads_last(x_BxGxNxK, length):
  batch, groups, _, size = x_BxGxNxK.shape
  return x_BxGxNxK.reshape(batch, groups, -1, length, size).transpose(0, 3, 1, 2, 4).reshape(batch, length, -1, size)


def softmax_attention_forward(
  q: jax.Array, k: jax.Array, v: jax.Array, bias: jax.Array | None, allowed: jax.Array | None, causal: bool,
  cap: float | None = None,
) -> tuple[jax.Array, tuple[Any, ...]]:  # fmt: skip
  (batch, length, heads, size), (keys, groups) = q.shape, k.shape[1:3]
  q, k, v = (_heads_first(x, groups) for x in (q * size**-0.5, k, v))
  scores = jnp.einsum("bgnk,bgmk->bgnm", q, k, preferred_element_type=jnp.float32)
  scores = scores.reshape(batch, heads, length, keys)
  if cap is not None:
    scores = cap * jnp.tanh(scores / cap)
  if bias is not None:
    scores += bias
  if causal or allowed is not None:
    reach = True if allowed is None else allowed[:, None]
    reach &= jnp.tril(jnp.ones((length, keys), bool))[None, None] if causal else True
    scores = jnp.where(reach, scores, jnp.finfo(jnp.float32).min)
  weights = barrier(jnp.exp(scores - jnp.max(scores, -1, keepdims=True)))
  weights = weights.reshape(batch, groups, -1, keys)
  total = jnp.sum(weights, -1, keepdims=True)
  weights = weights.astype(v.dtype)
  o = jnp.einsum("bgnm,bgmk->bgnk", weights, v, preferred_element_type=jnp.float32) / total
  return _heads_last(o, length).astype(v.dtype), (q, k, v, bias, weights, total, o)


def softmax_attention_backward(causal: bool, saved: tuple[Any, ...], do: jax.Array) -> tuple[jax.Array | None, ...]:
  q, k, v, bias, weights, total, o = saved
  length, groups, dtype = do.shape[1], k.shape[1], v.dtype
  do = barrier(_heads_first(do, groups) / total)
  delta = jnp.sum(do * o, -1, keepdims=True)
  do = do.astype(dtype)
  d_weights = jnp.einsum("bgnk,bgmk->bgnm", do, v, preferred_element_type=jnp.float32)
  d_scores = barrier(weights * (d_weights - delta))
  d_bias = None
  if bias is not None:
    d_bias = d_scores.reshape(do.shape[0], -1, length, k.shape[2])
    summed = [axis for axis, size in enumerate(bias.shape) if size == 1]
    d_bias = jnp.sum(d_bias, summed, keepdims=True).astype(bias.dtype)
  d_scores = d_scores.astype(dtype)
  dq = einsum_f32("bgnm,bgmk->bgnk", d_scores, k) * q.shape[-1] ** -0.5
  dk = einsum_f32("bgnm,bgnk->bgmk", d_scores, q)
  dv = einsum_f32("bgnm,bgnk->bgmk", weights, do)
  return _heads_last(dq, length), _heads_last(dk, k.shape[2]), _heads_last(dv, k.shape[2]), d_bias, None


softmax_attention.defvjp(softmax_attention_forward, softmax_attention_backward)
