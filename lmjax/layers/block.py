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

  The model passes the three constructors; a block only arranges them.
  """

  norm: Callable[..., nn.Module]
  attention: Callable[..., nn.Module]
  mlp: Callable[..., nn.Module]
  post: bool = False
  dropout: float = 0.0

  @nn.compact
  def __call__(
    self,
    x_BxLxD: jax.Array,
    positions_BxL: jax.Array,
    mask: Mask,
    cache: Cache | None = None,
    layer: int = 0,
    tap: bool = False,
  ) -> tuple[jax.Array, Cache | None, jax.Array | None]:
    """Returns the output [B, L, D], the extended cache, and the attention weights if tapped."""
    drop = nn.Dropout(self.dropout, deterministic=not self.has_rng("dropout"))
    attention, attention_norm = self.attention(name="attention"), self.norm(name="attention_norm")
    mlp, mlp_norm = self.mlp(name="mlp"), self.norm(name="mlp_norm")

    y, cache, weights = attention(
      x_BxLxD if self.post else attention_norm(x_BxLxD), positions_BxL, mask, cache, layer, tap
    )
    x_BxLxD = barrier(constrain(x_BxLxD + drop(y), "batch", "residual_length", None))
    if self.post:
      x_BxLxD = attention_norm(x_BxLxD)
      x_BxLxD = mlp_norm(x_BxLxD + drop(mlp(x_BxLxD)))
    else:
      x_BxLxD = x_BxLxD + drop(mlp(mlp_norm(x_BxLxD)))
    return constrain(x_BxLxD, "batch", "residual_length", None), cache, weights
