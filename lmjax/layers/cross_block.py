"""Cross-attention, and the decoder layer of an encoder-decoder."""

from collections.abc import Callable

import jax
from flax import linen as nn
from flax import struct

from lmjax.layers.backend import barrier
from lmjax.layers.cache import Cache
from lmjax.layers.einsum import Einsum
from lmjax.layers.kernels import dispatch
from lmjax.layers.kernels.mask import Mask
from lmjax.parallel.sharding import constrain


@struct.dataclass
class CrossInputs:
  """What a decoder layer reads besides its input: both masks, and the encoder's vectors."""

  self_mask: Mask
  cross_mask: Mask
  x_BxMxD: jax.Array | None = None  # None where the cache holds its keys and values


class CrossCache(struct.PyTreeNode):
  """The cache of self-attention, and each layer's keys and values [B, M, H, K] of the source, computed once."""

  self_cache: Cache
  layers: tuple[tuple[jax.Array, jax.Array], ...]
  valid_BxM: jax.Array  # which tokens of the source are not padding

  def reorder(self, rows_B: jax.Array) -> "CrossCache":
    """Returns the cache with row i taken from row rows_B[i]."""
    pick = lambda tree: jax.tree.map(lambda x: x[rows_B], tree)  # noqa: E731
    return CrossCache(self.self_cache.reorder(rows_B), pick(self.layers), self.valid_BxM[rows_B])


class CrossAttention(nn.Module):
  """Softmax attention from one sequence to another (Vaswani et al., 2017)."""

  heads: int
  head_size: int
  width: int
  bias: bool = True
  deviation: float = 0.02
  scale_scores: bool = True

  def setup(self):
    sizes = {"D": self.width, "H": self.heads, "G": self.heads, "K": self.head_size}
    rest = dict(bias=self.bias, deviation=self.deviation)
    scale = 1.0 if self.scale_scores else self.head_size**-0.5
    self.query = Einsum("BLD,DHK->BLHK", sizes, self.bias, scale, self.deviation)
    self.key = Einsum("BMD,DGK->BMGK", sizes, **rest)
    self.value = Einsum("BMD,DGK->BMGK", sizes, **rest)
    self.out = Einsum("BLHK,HKD->BLD", sizes, **rest)

  def project_source(self, source_BxMxD: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Returns the keys and values [B, M, H, K] of the source."""
    return self.key(source_BxMxD), self.value(source_BxMxD)

  def __call__(self, x_BxLxD: jax.Array, k_BxMxHxK: jax.Array, v_BxMxHxK: jax.Array, mask: Mask) -> jax.Array:
    """Returns the mixed vectors [B, L, D]."""
    q_BxLxHxK = self.query(x_BxLxD)
    if not self.scale_scores:
      q_BxLxHxK *= self.head_size**0.5
    q_BxLxHxK = constrain(q_BxLxHxK, "batch", "length", "heads", None)
    return self.out(dispatch.attend(q_BxLxHxK, k_BxMxHxK, v_BxMxHxK, mask))


class CrossBlock(nn.Module):
  """Self-attention, cross-attention, MLP: each a residual branch with a norm before it, or after it if `post`."""

  norm: Callable[..., nn.Module]
  attention: Callable[..., nn.Module]
  cross: Callable[..., nn.Module]
  feed_forward: Callable[..., nn.Module]
  post: bool = False
  dropout: float = 0.0

  def setup(self):
    self.self_attention, self.self_attention_norm = self.attention(), self.norm()
    self.cross_attention, self.cross_attention_norm = self.cross(), self.norm()
    self.mlp, self.mlp_norm = self.feed_forward(), self.norm()
    self.drop = nn.Dropout(self.dropout)

  def __call__(
    self,
    x_BxLxD: jax.Array,
    positions_BxL: jax.Array,
    source: CrossInputs,
    cache: CrossCache | None = None,
    layer: int = 0,
    tap: bool = False,
  ) -> tuple[jax.Array, CrossCache | None, jax.Array | None]:
    """Returns the output [B, L, D], the extended cache, and the weights of self-attention if tapped."""
    keys = self.project_source(source.x_BxMxD) if cache is None else cache.layers[layer]
    self_cache, weights = None if cache is None else cache.self_cache, None

    def attend(y):
      nonlocal self_cache, weights
      y, self_cache, weights = self.self_attention(y, positions_BxL, source.self_mask, self_cache, layer, tap)
      return y

    x_BxLxD = self._add(x_BxLxD, self.self_attention_norm, attend)
    x_BxLxD = self._add(x_BxLxD, self.cross_attention_norm, lambda y: self.cross_attention(y, *keys, source.cross_mask))
    x_BxLxD = self._add(x_BxLxD, self.mlp_norm, self.mlp)
    return x_BxLxD, None if cache is None else cache.replace(self_cache=self_cache), weights

  def project_source(self, source_BxMxD: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Returns the keys and values of the source in this layer."""
    return self.cross_attention.project_source(source_BxMxD)

  def _add(self, x_BxLxD: jax.Array, norm: nn.Module, part: Callable[[jax.Array], jax.Array]) -> jax.Array:
    y = self.drop(part(x_BxLxD if self.post else norm(x_BxLxD)), deterministic=not self.has_rng("dropout"))
    x_BxLxD = barrier(constrain(x_BxLxD + y, "batch", "residual_length", None))
    return norm(x_BxLxD) if self.post else x_BxLxD
