"""BART and Marian: encoder-decoders of the Transformer's shape that differ in their embeddings and scores.

Lewis et al. (2019), arXiv:1910.13461; Junczys-Dowmunt et al. (2018), arXiv:1804.00344.
"""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp

from lmjax.layers import leaves
from lmjax.layers.einsum import Embed
from lmjax.layers.norms import NORMS
from lmjax.layers.relative import sinusoids
from lmjax.models import encoder_decoder
from lmjax.models.base import Table
from lmjax.models.config import check
from lmjax.models.decoder import VocabularyBias
from lmjax.parallel.sharding import constrain
from lmjax.utils.pytree import Tree


@dataclasses.dataclass(frozen=True)
class Config(encoder_decoder.Config):
  """The shape of a BART or a Marian and how it is computed."""

  activation: str = "gelu"
  norm: str = "layer"
  post_norm: bool = True
  epsilon: float = 1e-5
  bias: bool = True
  scale_scores: bool = True
  scale_output: bool | None = False
  positions: str = "learned"  # or sinusoidal
  offset: int = 2  # rows of the tables of learned positions before that of the first token
  embed_norm: bool = True  # embeddings are normalized
  scale_embedding: bool = False  # embeddings are multiplied by sqrt(width)
  unembed_bias: bool = False  # of the scores of the next token

  def __post_init__(self):
    check(self, "vocabulary length width depth heads head_size mlp", positions=("learned", "sinusoidal"))


class Bart(encoder_decoder.EncoderDecoder):
  """An encoder-decoder whose sides have embeddings of one table, and positions and norms of their own.

  Parameters: those of EncoderDecoder, and where the config wants them `encoder_positions`, `decoder_positions`,
  `encoder_embed_norm`, `decoder_embed_norm`, `unembed_bias`.
  """

  config: Config

  def setup(self):
    super().setup()
    c = self.config
    if c.positions == "learned":
      table = partial(Embed, c.length + c.offset, c.width, axis="positions")
      self.encoder_positions, self.decoder_positions = table(), table()
    if c.embed_norm:
      norm = partial(NORMS[c.norm], epsilon=c.epsilon)
      self.encoder_embed_norm, self.decoder_embed_norm = norm(), norm()
    if c.unembed_bias:
      self.unembed_bias = VocabularyBias(c.vocabulary)

  def embed_tokens(self, tokens_BxL: jax.Array, positions_BxL: jax.Array, side: str = "decoder") -> jax.Array:
    """Returns the input [B, L, D] of the first layer of encoder or decoder."""
    c = self.config
    x_BxLxD = self.embed(tokens_BxL, jnp.dtype(c.dtype))
    if c.scale_embedding:
      x_BxLxD *= c.width**0.5
    if c.positions == "learned":
      x_BxLxD += getattr(self, f"{side}_positions")(positions_BxL + c.offset, x_BxLxD.dtype)
    else:
      x_BxLxD += sinusoids(positions_BxL, c.width).astype(x_BxLxD.dtype)
    x_BxLxD = getattr(self, f"{side}_embed_norm")(x_BxLxD) if c.embed_norm else x_BxLxD
    if self.is_initializing() and c.unembed_bias:
      self.unembed_bias()
    x_BxLxD = constrain(x_BxLxD, "batch", "residual_length", None)
    return self.drop(x_BxLxD, deterministic=not self.has_rng("dropout"))

  def logits(self, x: jax.Array) -> jax.Array:
    """Returns float32 scores [..., V] of final vectors [..., D]."""
    scores = super().logits(x)
    if not self.config.unembed_bias:
      return scores
    bias_V = self.unembed_bias()[: self.config.vocabulary]
    return scores + jnp.expand_dims(bias_V, tuple(range(scores.ndim - 1)))

  def unembedding(self, params: Tree) -> Table:
    """Returns what scores final vectors, out of this model's parameters."""
    bias = leaves.dense(params["unembed_bias"]["bias"]) if self.config.unembed_bias else None
    return super().unembedding(params)._replace(bias=bias)


def _bart(width: int, depth: int, heads: int, **changes) -> dict:
  shape = dict(width=width, depth=depth, heads=heads, head_size=width // heads, mlp=4 * width)
  return dict(vocabulary=50_265, length=1024) | shape | changes


PRESETS: dict[str, dict] = {
  "bart-base": _bart(768, 6, 12),
  "bart-large": _bart(1024, 12, 16),
  "marian-base": _bart(
    512, 6, 8, vocabulary=58_101, length=512, activation="silu", positions="sinusoidal", embed_norm=False,
    scale_embedding=True, unembed_bias=True,
  ),
}  # fmt: skip
