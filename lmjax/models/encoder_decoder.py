"""The encoder-decoder family: the Transformer and T5, by one Config.

Vaswani et al. (2017), arXiv:1706.03762; Raffel et al. (2020), arXiv:1910.10683, and its version 1.1 with gated units
(Shazeer, 2020, arXiv:2002.05202).
"""

import dataclasses
from collections.abc import Mapping
from functools import partial

import jax
import jax.numpy as jnp
from flax import linen as nn

from lmjax.layers.attention import Attention
from lmjax.layers.block import Block
from lmjax.layers.cache import Cache
from lmjax.layers.cross_block import CrossAttention, CrossBlock, CrossCache, CrossInputs
from lmjax.layers.einsum import Embed, vocabulary_logits
from lmjax.layers.kernels.dispatch import prepare_mask
from lmjax.layers.kernels.mask import Mask
from lmjax.layers.mlp import Mlp
from lmjax.layers.norms import NORMS
from lmjax.layers.relative import RelativeBias, sinusoids
from lmjax.layers.stack import Stack, decode_layout, unstack
from lmjax.models.base import Hidden, Kind, Table, positions_of
from lmjax.models.config import check
from lmjax.parallel.sharding import constrain
from lmjax.utils.pytree import Tree


@dataclasses.dataclass(frozen=True)
class Config:
  """The shape of an encoder-decoder and how it is computed."""

  vocabulary: int  # comes from the tokenizer
  length: int  # of the source, in tokens; comes from data.length. The model itself has no longest one
  width: int = 512
  depth: int = 6  # of the encoder, and of the decoder
  decoder_depth: int | None = None  # of the decoder where it differs; 0 is an encoder alone
  heads: int = 8
  head_size: int = 64
  mlp: int = 2048
  positions: str = "relative"  # or sinusoidal
  num_buckets: int = 32  # of relative distances
  max_distance: int = 128  # all distances from here on share a bucket
  activation: str = "relu"
  gated_mlp: bool = False
  norm: str = "rms"
  post_norm: bool = False
  epsilon: float = 1e-6
  bias: bool = False
  scale_scores: bool = False  # attention scores are divided by sqrt(head_size)
  tie_embeddings: bool = True  # one table for source, target and scores
  scale_output: bool | None = None  # T5 scores vectors divided by sqrt(width); None: where embeddings are tied
  dropout: float = 0.0  # of embeddings and residual branches
  dtype: str = "float32"  # of the computation; parameters are float32
  scan: bool = True
  remat: str = "none"

  def __post_init__(self):
    check(self, "vocabulary length width depth heads head_size mlp", positions=("relative", "sinusoidal"))


class EncoderDecoder(nn.Module):
  """An encoder of sources and a decoder of targets.

  Parameters: `embed`, `encoder`, `decoder` (stacks), and where the config wants them `encoder_bias`, `decoder_bias`
  (relative positions), `encoder_norm`, `decoder_norm` (pre-norm), `unembed`.
  """

  config: Config
  causal = False  # of the whole; the decoder's self-attention is causal, a small part of the work

  @property
  def kind(self) -> Kind:
    return "encoder" if self.config.decoder_depth == 0 else "encoder_decoder"

  def setup(self):
    c = self.config
    start = dict(bias=c.bias, deviation=c.width**-0.5)
    parts = dict(
      norm=partial(NORMS[c.norm], epsilon=c.epsilon),
      attention=partial(
        Attention, heads=c.heads, kv_heads=c.heads, head_size=c.head_size, scale_scores=c.scale_scores, **start
      ),
      post=c.post_norm,
      dropout=c.dropout,
    )  # fmt: skip
    mlp = partial(Mlp, width=c.width, mlp=c.mlp, activation=c.activation, gated=c.gated_mlp, **start)
    cross = partial(
      CrossAttention, heads=c.heads, head_size=c.head_size, width=c.width, scale_scores=c.scale_scores, **start
    )  # fmt: skip
    relative = c.positions == "relative"
    self.embed = Embed(c.vocabulary, c.width, deviation=1.0 if relative else c.width**-0.5)
    self.encoder = Stack(partial(Block, mlp=mlp, **parts), c.depth, c.scan, c.remat)
    decoder = partial(CrossBlock, cross=cross, feed_forward=mlp, **parts)
    self.decoder = Stack(decoder, self._decoder_depth, c.scan, c.remat)
    if relative:
      self.encoder_bias = RelativeBias(c.heads, c.num_buckets, c.max_distance)
      self.decoder_bias = RelativeBias(c.heads, c.num_buckets, c.max_distance, causal=True)
    if not c.post_norm:
      self.encoder_norm, self.decoder_norm = parts["norm"](), parts["norm"]()
    if not c.tie_embeddings:
      self.unembed = Embed(c.vocabulary, c.width, deviation=c.width**-0.5)
    self.drop = nn.Dropout(c.dropout)

  def __call__(self, batch: Mapping[str, jax.Array], taps: tuple[str, ...] = ()) -> Hidden:
    """Returns the decoder's final vectors [B, L, D] and what was tapped in it, with `source` [B, M, D].

    Segments number the pairs packed in a row, the same in source and target; 0 is padding. An encoder alone returns its
    own.
    """
    if self.kind == "encoder":
      source_BxMxD, tapped = self.encode(batch, taps)
      return Hidden(source_BxMxD, taps=tapped)
    source_BxMxD, _ = self.encode(batch)
    ids_BxL, segments_BxL = batch["decoder_inputs"], batch.get("decoder_segments")
    length, sources = ids_BxL.shape[1], source_BxMxD.shape[1]
    positions_BxL = positions_of(batch, "decoder_inputs", "decoder_positions")
    cross = prepare_mask(Mask(segments_BxL, self.sources_of(batch)), length, sources)
    bias_BxHxLxM = self._bias("decoder_bias", length)
    mask = Mask(segments_BxL, None, batch.get("decoder_allowed"), bias_BxHxLxM, causal=True)
    source = CrossInputs(prepare_mask(mask, length), cross, source_BxMxD)
    x_BxLxD, tapped = self.decoder(self.embed_tokens(ids_BxL, positions_BxL), positions_BxL, source, taps)
    if self.is_initializing() and not self.config.tie_embeddings:
      self.unembed(ids_BxL)
    return Hidden(self.final_norm(x_BxLxD), taps=tapped | ({"source": source_BxMxD} if taps else {}))

  def sources_of(self, batch: Mapping[str, jax.Array]) -> jax.Array | None:
    """Returns the number [B, M] of the pair whose target attends to a token of the source; 0 for none."""
    return batch.get("segments")

  def encode(
    self, batch: Mapping[str, jax.Array], taps: tuple[str, ...] = ()
  ) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Returns the encoder's final vectors [B, M, D] of `inputs` and what was tapped in it."""
    c, ids_BxM, positions_BxM = self.config, batch["inputs"], positions_of(batch)
    length = ids_BxM.shape[1]
    mask = prepare_mask(Mask(batch.get("segments"), bias_BxHxLxM=self._bias("encoder_bias", length)), length)
    x_BxMxD, tapped = self.encoder(self.embed_tokens(ids_BxM, positions_BxM, "encoder"), positions_BxM, mask, taps)
    if not c.post_norm:
      x_BxMxD = self.encoder_norm(x_BxMxD)
    return self.drop(x_BxMxD, deterministic=not self.has_rng("dropout") or c.post_norm), tapped

  def prefill(self, batch: Mapping[str, jax.Array], max_tokens: int) -> tuple[jax.Array, CrossCache]:
    """Returns the final vectors [B, L, D] of the `decoder_inputs` and the cache that holds them and the source.

    Tokens with segment 0 are padding, which may come on either side.
    """
    c, valid_BxM, ids_BxL = self.config, batch["segments"] > 0, batch["decoder_inputs"]
    positions_BxM = jnp.maximum(jnp.cumsum(valid_BxM, axis=1) - 1, 0)
    x_BxMxD, _ = self.encode({key: batch[key] for key in ("inputs", "segments")} | {"positions": positions_BxM})
    layers = tuple(
      self.decoder.block(parent=None).apply({"params": params}, x_BxMxD, method="project_source")
      for params in self._decoder_layers()
    )
    self_cache = Cache.empty(self._decoder_depth, len(ids_BxL), max_tokens, c.heads, c.head_size, jnp.dtype(c.dtype))
    return self.extend(CrossCache(self_cache, layers, valid_BxM), ids_BxL, batch["decoder_segments"] > 0)

  def extend(self, cache: CrossCache, tokens_BxL: jax.Array, valid_BxL: jax.Array) -> tuple[jax.Array, CrossCache]:
    """Returns the final vectors [B, L, D] of tokens that follow those in the cache, and the extended cache."""
    self_cache, positions_BxL, allowed_BxLxM = cache.self_cache.reserve(valid_BxL)
    bias = self.decoder_bias(positions_BxL, self_cache.positions_BxM) if self.config.positions == "relative" else None
    length, sources = tokens_BxL.shape[1], cache.valid_BxM.shape[1]
    source_mask = jnp.broadcast_to(cache.valid_BxM[:, None], (len(tokens_BxL), length, sources))
    source = CrossInputs(Mask(allowed_BxLxM=allowed_BxLxM, bias_BxHxLxM=bias), Mask(allowed_BxLxM=source_mask))
    x_BxLxD = self.embed_tokens(tokens_BxL, positions_BxL)
    x_BxLxD, cache = self.decoder.extend(x_BxLxD, positions_BxL, source, cache.replace(self_cache=self_cache))
    return self.final_norm(x_BxLxD), cache.replace(self_cache=cache.self_cache.advance(length))

  def logits(self, x: jax.Array) -> jax.Array:
    """Returns float32 scores [..., V] of final vectors [..., D]."""
    table = self.embed.table if self.config.tie_embeddings else self.unembed.table
    return vocabulary_logits(x, table, self.config.vocabulary)

  def unembedding(self, params: Tree) -> Table:
    """Returns the table [V padded, D] that scores final vectors, out of this model's parameters."""
    return Table(params["embed" if self.config.tie_embeddings else "unembed"]["table"])

  def decode_layout(self, params: Tree) -> Tree:
    """Returns the parameters with each decoder layer as a tree of its own, as decoding reads them fastest."""
    return params | {"decoder": {"layers": decode_layout(params["decoder"]["layers"], self._decoder_depth)}}

  def embed_tokens(self, tokens_BxL: jax.Array, positions_BxL: jax.Array, side: str = "decoder") -> jax.Array:
    """Returns the input [B, L, D] of the first layer of encoder or decoder."""
    c = self.config
    x_BxLxD = self.embed(tokens_BxL, jnp.dtype(c.dtype))
    if c.positions == "sinusoidal":
      x_BxLxD = x_BxLxD * c.width**0.5 + sinusoids(positions_BxL, c.width).astype(x_BxLxD.dtype)
    x_BxLxD = constrain(x_BxLxD, "batch", "residual_length", None)
    return self.drop(x_BxLxD, deterministic=not self.has_rng("dropout"))

  def final_norm(self, x_BxLxD: jax.Array) -> jax.Array:
    """Returns the final vectors of the decoder's last output: normalized, and scaled where T5 ties its tables."""
    c = self.config
    if not c.post_norm:
      x_BxLxD = self.decoder_norm(x_BxLxD)
      x_BxLxD = self.drop(x_BxLxD, deterministic=not self.has_rng("dropout"))
    scaled = c.tie_embeddings and c.positions == "relative" if c.scale_output is None else c.scale_output
    return x_BxLxD * c.width**-0.5 if scaled else x_BxLxD

  @property
  def _decoder_depth(self) -> int:
    return self.config.depth if self.config.decoder_depth is None else self.config.decoder_depth

  def _bias(self, name: str, length: int) -> jax.Array | None:
    """Returns the relative bias [1, H, L, L]; within a packed document, columns differ as positions do."""
    if self.config.positions != "relative":
      return None
    places = jnp.arange(length)[None]
    return getattr(self, name)(places, places)

  def _decoder_layers(self) -> tuple[Tree, ...]:
    layers = self.get_variable("params", "decoder")["layers"]
    return layers if isinstance(layers, tuple) else unstack(layers, self._decoder_depth)


def _transformer(width: int, mlp: int, heads: int) -> dict:
  return dict(
    vocabulary=37_000, length=512, width=width, depth=6, heads=heads, head_size=64, mlp=mlp, positions="sinusoidal",
    norm="layer", post_norm=True, bias=True, scale_scores=True,
  )  # fmt: skip


def _t5(width: int, depth: int, heads: int, head_size: int, mlp: int, **changes) -> dict:
  shape = dict(width=width, depth=depth, heads=heads, head_size=head_size, mlp=mlp)
  return dict(vocabulary=32_128, length=512) | shape | changes


def _v1_1(width: int, depth: int, heads: int, mlp: int) -> dict:
  return _t5(width, depth, heads, 64, mlp, activation="gelu_tanh", gated_mlp=True, tie_embeddings=False)


PRESETS: dict[str, dict] = {
  "transformer-base": _transformer(512, 2048, 8),
  "transformer-big": _transformer(1024, 4096, 16),
  "t5-mini": _t5(256, 4, 4, 64, 1024),
  "t5-small": _t5(512, 6, 8, 64, 2048),
  "t5-base": _t5(768, 12, 12, 64, 3072),
  "t5-large": _t5(1024, 24, 16, 64, 4096),
  "t5-3b": _t5(1024, 24, 32, 128, 16_384),
  "t5-11b": _t5(1024, 24, 128, 128, 65_536),
  "t5-v1_1-small": _v1_1(512, 8, 6, 1024),
  "t5-v1_1-base": _v1_1(768, 12, 12, 2048),
  "t5-v1_1-large": _v1_1(1024, 24, 16, 2816),
  "t5-v1_1-xl": _v1_1(2048, 24, 32, 5120),
  "t5-v1_1-xxl": _v1_1(4096, 24, 64, 10_240),
}
