"""ModernBERT: a pre-norm encoder with rotary positions whose layers attend globally or within a window.

Warner et al. (2024), arXiv:2412.13663.
"""

import dataclasses
from collections.abc import Mapping
from functools import partial

import jax
import jax.numpy as jnp
from flax import linen as nn

from lmjax.layers.attention import Attention
from lmjax.layers.backend import barrier
from lmjax.layers.block import Block
from lmjax.layers.cache import Cache
from lmjax.layers.einsum import Embed
from lmjax.layers.kernels.dispatch import prepare_mask
from lmjax.layers.kernels.mask import Mask
from lmjax.layers.mlp import Mlp
from lmjax.layers.norms import NORMS
from lmjax.layers.positions import Rotary
from lmjax.layers.stack import REMAT
from lmjax.models import encoder
from lmjax.models.base import Hidden, Table, positions_of
from lmjax.parallel.sharding import constrain
from lmjax.utils.pytree import Tree

UNUSED = dict(embedding=None, shared_layers=False, offset=0, token_types=0, pooler=False)


@dataclasses.dataclass(frozen=True)
class Config(encoder.Config):
  """The shape of a ModernBERT and how it is computed. Nothing has a bias but the scores of tokens."""

  token_types: int = 0
  pooler: bool = False
  epsilon: float = 1e-5
  bias: bool = False
  reach: int = 64  # tokens on either side of itself that a token attends to, in `window_layers`
  window_layers: tuple[int, ...] = ()  # the layers with the window, from 0; the others attend to all tokens
  rotary: Rotary = Rotary(160_000.0)
  window_rotary: Rotary = Rotary()  # of `window_layers`

  def __post_init__(self):
    super().__post_init__()
    object.__setattr__(self, "window_layers", tuple(self.window_layers))
    for name, value in (UNUSED | dict(bias=False)).items():
      if getattr(self, name) != value:
        raise ValueError(f"{name} is {value} in a ModernBERT, not {getattr(self, name)}")
    if self.reach < 0:
      raise ValueError(f"reach is at least 0, not {self.reach}")
    if self.head_size % 2:
      raise ValueError(f"rotary positions need an even head_size, not {self.head_size}")


class TwoSidedAttention(Attention):
  """Attention whose window reaches as far forward as backward."""

  def __call__(
    self, x_BxLxD: jax.Array, positions_BxL: jax.Array, mask: Mask, cache: Cache | None = None, layer: int = 0,
    tap: bool = False,
  ) -> tuple[jax.Array, Cache | None, jax.Array | None]:  # fmt: skip
    """Returns what `Attention` returns, which leaves out what is too far back."""
    if layer in self.window_layers:
      length = x_BxLxD.shape[1]
      within_LxM = jnp.arange(length)[None, :] - jnp.arange(length)[:, None] < self.window
      allowed = mask.allowed_BxLxM
      within_BxLxM = within_LxM[None] if allowed is None else allowed & within_LxM[None]
      mask = dataclasses.replace(mask, allowed_BxLxM=within_BxLxM)
    return super().__call__(x_BxLxD, positions_BxL, mask, cache, layer, tap)


class ModernBERT(nn.Module):
  """A bidirectional transformer whose first layer has no norm before its attention: embeddings are normalized.

  Parameters: `embed`, `embed_norm`, `layers_0`, `layers_1`, ..., `norm`, `unembed` (if not tied).
  """

  config: Config
  kind = "encoder"
  causal = False

  def setup(self):
    c = self.config
    scale = (2 * c.depth) ** -0.5  # residual branches start small, so that the sum over depth does not grow
    norm = partial(NORMS["layer"], epsilon=c.epsilon, bias=False)
    attention = partial(
      TwoSidedAttention, heads=c.heads, kv_heads=c.heads, head_size=c.head_size, bias=False, scale=scale,
      rotary=c.rotary, window=c.reach + 1, window_layers=c.window_layers, window_rotary=c.window_rotary,
    )  # fmt: skip
    mlp = partial(Mlp, width=c.width, mlp=c.mlp, activation=c.activation, gated=True, bias=False, scale=scale)

    def first_norm(name: str) -> nn.Module:
      return Identity(name=name) if name == "attention_norm" else norm(name=name)

    self.embed = Embed(c.vocabulary, c.width)
    self.embed_norm, self.norm = norm(), norm()
    block = partial(Block, attention=attention, mlp=mlp, dropout=c.dropout)
    self.layers = [block(norm=norm if i else first_norm) for i in range(c.depth)]  # they differ: no stack of them
    if not c.tie_embeddings:
      self.unembed = Embed(c.vocabulary, c.width)
    self.drop = nn.Dropout(c.dropout)

  def __call__(self, batch: Mapping[str, jax.Array], taps: tuple[str, ...] = ()) -> Hidden:
    """Returns the final vectors [B, L, D]; taps: `hidden` [N, B, L, D] and `attention` [N, B, H, L, L] of all layers.

    Tokens attend to those of their own segment; padding has segment 0.
    """
    c, ids_BxL, positions_BxL = self.config, batch["inputs"], positions_of(batch)
    x_BxLxD = self.embed_norm(self.embed(ids_BxL, jnp.dtype(c.dtype)))
    x_BxLxD = constrain(x_BxLxD, "batch", "residual_length", None)
    x_BxLxD = self.drop(x_BxLxD, deterministic=not self.has_rng("dropout"))
    mask = prepare_mask(Mask(batch.get("segments")), ids_BxL.shape[1])
    tapped = []
    for i, layer in enumerate(self.layers):

      def compute(layer: nn.Module, x_BxLxD: jax.Array, i: int = i) -> tuple[jax.Array, jax.Array | None]:
        y, _, weights = layer(x_BxLxD, positions_BxL, mask, layer=i, tap="attention" in taps)
        return y, weights

      policy = REMAT[c.remat]
      x_BxLxD, weights = (nn.remat(compute, policy=policy) if policy else compute)(layer, barrier(x_BxLxD))
      tapped.append({key: value for key, value in (("hidden", x_BxLxD), ("attention", weights)) if key in taps})
    if self.is_initializing() and not c.tie_embeddings:
      self.unembed(ids_BxL)
    return Hidden(self.norm(x_BxLxD), taps=jax.tree.map(lambda *layers: jnp.stack(layers), *tapped))

  def unembedding(self, params: Tree) -> Table:
    """Returns the table [V padded, D] that scores vectors, out of this model's parameters."""
    return Table(params["embed" if self.config.tie_embeddings else "unembed"]["table"])


class Identity(nn.Module):
  """Returns its input."""

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    return x


def _modernbert(depth: int, width: int, heads: int, mlp: int) -> dict:
  shape = dict(width=width, depth=depth, heads=heads, head_size=width // heads, mlp=mlp)
  return dict(vocabulary=50_368, length=8192, window_layers=tuple(i for i in range(depth) if i % 3)) | shape


PRESETS: dict[str, dict] = {
  "modernbert-base": _modernbert(22, 768, 12, 1152),
  "modernbert-large": _modernbert(28, 1024, 16, 2624),
}
