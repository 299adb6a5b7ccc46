"""A decoder whose MLPs are mixtures of experts: Mixtral and Qwen3-MoE by one Config.

Jiang et al. (2024), arXiv:2401.04088; Yang et al. (2025), arXiv:2505.09388.
"""

import dataclasses
from collections.abc import Callable
from functools import partial

from flax import linen as nn

from lmjax.layers.experts import Experts
from lmjax.models import decoder


@dataclasses.dataclass(frozen=True)
class Config(decoder.Config):
  """The shape of a decoder, and its experts, each of which is an MLP of width `mlp`."""

  experts: int = 8  # of each layer
  chosen: int = 2  # experts of a token
  normalize: bool = True  # the weights of a token's experts add up to 1

  def __post_init__(self):
    super().__post_init__()
    if not 1 <= self.chosen <= self.experts:
      raise ValueError(f"chosen ({self.chosen}) is at least 1 and at most experts ({self.experts})")
    if self.bias or self.mlp_bias:
      raise ValueError("experts have no biases: set bias and mlp_bias to false")


class ExpertDecoder(decoder.Decoder):
  """A decoder in which a router chooses the MLPs of each token; taps: also `router_scores` [N, B, L, X]."""

  config: Config

  def make_mlp(self, c: Config, scale: float) -> Callable[..., nn.Module]:  # type: ignore[override]  # its own config
    """Returns the constructor of a layer's experts; scale: of their output projections' initial values."""
    return partial(
      Experts, width=c.width, mlp=c.mlp, experts=c.experts, chosen=c.chosen, activation=c.activation,
      gated=c.gated_mlp, normalize=c.normalize, scale=scale,
    )  # fmt: skip


def _mixtral(width: int, depth: int, heads: int, kv_heads: int, mlp: int) -> dict:
  return dict(
    vocabulary=32_000, length=4096, width=width, depth=depth, heads=heads, kv_heads=kv_heads, head_size=128, mlp=mlp,
    activation="silu", gated_mlp=True, norm="rms", bias=False, tie_embeddings=False, rotary=dict(base=1e6), experts=8,
    chosen=2,
  )  # fmt: skip


PRESETS: dict[str, dict] = {
  "mixtral-8x7b": _mixtral(4096, 32, 32, 8, 14_336),
  "mixtral-8x22b": _mixtral(6144, 56, 48, 8, 16_384) | dict(vocabulary=32_768),
}
