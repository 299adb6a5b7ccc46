"""Multi-head attention with grouped keys and values."""

import dataclasses
from collections.abc import Callable

import jax
from flax import linen as nn

from lmjax.layers.cache import Cache
from lmjax.layers.einsum import Einsum
from lmjax.layers.kernels import dispatch
from lmjax.layers.kernels.mask import Mask
from lmjax.parallel.sharding import constrain


def window_mask(positions_BxL: jax.Array, positions_BxM: jax.Array, window: int) -> jax.Array:
  """Returns mask_BxLxM: True where the attended token is fewer than `window` positions back."""
  return positions_BxL[:, :, None] - positions_BxM[:, None, :] < window


class Attention(nn.Module):
  """Softmax attention (Vaswani et al., 2017), `heads` queries over `kv_heads` shared keys and values."""

  heads: int
  kv_heads: int
  head_size: int
  bias: bool = True
  out_bias: bool | None = None  # of the output projection; None is as `bias`
  rotary: Callable[[jax.Array, jax.Array], jax.Array] | None = None  # turns vectors by their positions
  scale: float = 1.0  # of the output projection's initial values
  deviation: float = 0.02  # of the initial values
  scale_scores: bool = True  # scores are divided by sqrt(head_size); T5 leaves that to its initial values
  scale_by_layer: bool = False  # scores of layer i are divided by i + 1
  score_scale: float | None = None  # scores are multiplied by it instead
  score_cap: float | None = None  # scores are cap * tanh(score / cap)
  norm: Callable[..., nn.Module] | None = None  # of each head's queries and keys, before they are turned
  window: int | None = None  # of the layers in `window_layers`; the mask has the window of all layers
  window_layers: tuple[int, ...] = ()
  window_rotary: Callable[[jax.Array, jax.Array], jax.Array] | None = None  # `rotary` of those layers

  @nn.compact
  def __call__(
    self, x_BxLxD: jax.Array, positions_BxL: jax.Array, mask: Mask, cache: Cache | None = None, layer: int = 0,
    tap: bool = False,
  ) -> tuple[jax.Array, Cache | None, jax.Array | None]:  # fmt: skip
    """Returns the mixed vectors [B, L, D], the cache with this layer's keys, and the weights [B, H, L, M] if tapped."""
    sizes = {"D": x_BxLxD.shape[-1], "H": self.heads, "G": self.kv_heads, "K": self.head_size}
    smaller = 1.0 if self.scale_scores else self.head_size**-0.5
    q_BxLxHxK = Einsum("BLD,DHK->BLHK", sizes, self.bias, smaller, self.deviation, name="query")(x_BxLxD)
    k_BxMxGxK = Einsum("BLD,DGK->BLGK", sizes, self.bias, deviation=self.deviation, name="key")(x_BxLxD)
    v_BxMxGxK = Einsum("BLD,DGK->BLGK", sizes, self.bias, deviation=self.deviation, name="value")(x_BxLxD)
    self.sow("taps", "values", v_BxMxGxK, reduce_fn=lambda _, v: v, init_fn=lambda: None)
    if self.norm:
      q_BxLxHxK, k_BxMxGxK = self.norm(name="query_norm")(q_BxLxHxK), self.norm(name="key_norm")(k_BxMxGxK)
    if rotary := self.window_rotary if self.window_rotary and layer in self.window_layers else self.rotary:
      q_BxLxHxK, k_BxMxGxK = rotary(q_BxLxHxK, positions_BxL), rotary(k_BxMxGxK, positions_BxL)
    if not self.scale_scores:
      q_BxLxHxK *= self.head_size**0.5
    if self.score_scale is not None:
      q_BxLxHxK *= self.score_scale * self.head_size**0.5
    if self.scale_by_layer:
      q_BxLxHxK /= layer + 1
    q_BxLxHxK = constrain(q_BxLxHxK, "batch", "length", "heads", None)
    if self.score_cap is not None:
      mask = dataclasses.replace(mask, cap=self.score_cap)
    if layer in self.window_layers and cache is None:
      mask = dataclasses.replace(mask, window=self.window)
    elif layer in self.window_layers:
      within_BxLxM = window_mask(positions_BxL, cache.positions_BxM, self.window)
      mask = dataclasses.replace(mask, allowed_BxLxM=mask.allowed_BxLxM & within_BxLxM)
    if cache is not None:
      cache = cache.write(layer, k_BxMxGxK, v_BxMxGxK)
      k_BxMxGxK, v_BxMxGxK = cache.read(layer)
      k_BxMxGxK, v_BxMxGxK = k_BxMxGxK.astype(q_BxLxHxK.dtype), v_BxMxGxK.astype(q_BxLxHxK.dtype)
    o_BxLxHxK = dispatch.attend(q_BxLxHxK, k_BxMxGxK, v_BxMxGxK, mask)
    weights = dispatch.attention_weights(q_BxLxHxK, k_BxMxGxK, mask) if tap else None
    out_bias = self.bias if self.out_bias is None else self.out_bias
    y_BxLxD = Einsum("BLHK,HKD->BLD", sizes, out_bias, self.scale, self.deviation, name="out")(o_BxLxHxK)
    return y_BxLxD, cache, weights
