"""One transformer layer: attention and MLP, each a residual around a norm."""

from collections.abc import Callable

import jax
from flax import linen as nn

from lmjax.layers.backend import barrier
from lmjax.layers.cache import Cache
from lmjax.layers.kernels.mask import Mask
from lmjax.parallel.sharding import constrain


class Block(nn.Module):
  """x + attention(norm(x)), then x + mlp(norm(x)); with `post`, norm(x + attention(x)) as in 2017 and GPT-1.

  With `parallel`, both read the same x: x + attention(norm(x)) + mlp(norm(x)), as GPT-J and GPT-NeoX do (Black et al.,
  2022, arXiv:2204.06745). The model passes the three constructors; a block only arranges them.
  """

  norm: Callable[..., nn.Module]
  attention: Callable[..., nn.Module]
  mlp: Callable[..., nn.Module]
  post: bool = False
  parallel: bool = False
  shared_norm: bool = False  # with `parallel`: of both
  output_norms: bool = False  # what attention and MLP add is normalized too
  residual_scale: float = 1.0  # of what attention and MLP add
  dropout: float = 0.0

  @nn.compact
  def __call__(
    self, x_BxLxD: jax.Array, positions_BxL: jax.Array, mask: Mask, cache: Cache | None = None, layer: int = 0,
    tap: bool = False,
  ) -> tuple[jax.Array, Cache | None, jax.Array | None]:  # fmt: skip
    """Returns the output [B, L, D], the extended cache, and the attention weights if tapped."""
    drop = nn.Dropout(self.dropout, deterministic=not self.has_rng("dropout"))
    attention, attention_norm = self.attention(name="attention"), self.norm(name="attention_norm")
    mlp, mlp_norm = self.mlp(name="mlp"), self.norm(name="mlp_norm")

    def added(y, name):
      y = drop(self.norm(name=name)(y) if self.output_norms else y)
      return y if self.residual_scale == 1 else y * self.residual_scale

    normed = x_BxLxD if self.post else attention_norm(x_BxLxD)
    y, cache, weights = attention(normed, positions_BxL, mask, cache, layer, tap)
    source = x_BxLxD
    x_BxLxD = barrier(constrain(x_BxLxD + added(y, "attention_output_norm"), "batch", "residual_length", None))
    if self.post:
      x_BxLxD = attention_norm(x_BxLxD)
      x_BxLxD = mlp_norm(x_BxLxD + added(mlp(x_BxLxD), "mlp_output_norm"))
    else:
      if not self.shared_norm:
        normed = mlp_norm(source if self.parallel else x_BxLxD)
      x_BxLxD = x_BxLxD + added(mlp(normed), "mlp_output_norm")
    return constrain(x_BxLxD, "batch", "residual_length", None), cache, weights
