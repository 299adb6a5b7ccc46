"""The decoder family: GPT-1, GPT-2, GPT-3 and the Llama shape, by one Config.

Radford et al. (2018, 2019); Brown et al. (2020), arXiv:2005.14165, dense attention throughout; Touvron et al. (2023),
arXiv:2302.13971; Llama 3 (2024), arXiv:2407.21783.
"""

import dataclasses
from collections.abc import Callable, Mapping
from functools import partial

import jax
import jax.numpy as jnp
from flax import linen as nn

from lmjax.layers import leaves
from lmjax.layers.attention import Attention, window_mask
from lmjax.layers.block import Block
from lmjax.layers.cache import Cache
from lmjax.layers.einsum import Embed, padded, vocabulary_logits
from lmjax.layers.kernels.dispatch import prepare_mask
from lmjax.layers.kernels.mask import Mask
from lmjax.layers.mlp import Mlp
from lmjax.layers.norms import NORMS
from lmjax.layers.positions import Rotary
from lmjax.layers.stack import Stack, decode_layout
from lmjax.models.base import Hidden, Table, positions_of
from lmjax.models.config import check
from lmjax.parallel.sharding import constrain
from lmjax.utils.pytree import Tree


@dataclasses.dataclass(frozen=True)
class Config:
  """The shape of a decoder and how it is computed."""

  vocabulary: int  # comes from the tokenizer
  length: int  # the longest sequence, in tokens; comes from data.length
  width: int = 768
  depth: int = 12
  heads: int = 12
  kv_heads: int = 0  # key/value heads, a divisor of heads; 0: as many as heads
  head_size: int = 64  # 0: width / heads
  mlp: int = 3072
  activation: str = "gelu_tanh"
  gated_mlp: bool = False
  norm: str = "layer"
  post_norm: bool = False
  epsilon: float = 1e-5
  bias: bool = True
  qkv_bias: bool = False  # of query, key and value where nothing else has one (Qwen2)
  attention_bias: bool = False  # of those and the output where `bias` is off
  mlp_bias: bool = False  # of the MLP where `bias` is off
  tie_embeddings: bool = True  # the embedding table also scores the next token
  unembed_bias: bool = False  # of the scores of the next token
  logits_scaling: float = 1.0  # those scores are divided by it, with the final vectors
  logits_cap: float | None = None  # those scores are cap * tanh(score / cap)
  embed_scale: float = 1.0  # of the embedded tokens
  position_offset: int = 0  # rows of the table of positions before that of the first token (OPT has 2)
  parallel: bool = False  # the MLP reads what attention reads
  shared_norm: bool = False  # with `parallel`: by one norm
  output_norms: bool = False  # what attention and MLP add is normalized too (Gemma 2)
  residual_scale: float = 1.0  # of what attention and MLP add
  rotary: Rotary | None = None  # None: learned positions
  window: int | None = None  # how many tokens back attention reaches, itself included
  window_layers: tuple[int, ...] = ()  # the layers with the window, from 0; empty for all
  window_rotary: Rotary | None = None  # of `window_layers`, where it is not `rotary` (Gemma 3)
  qk_norm: bool = False  # of each head's queries and keys (Qwen3)
  score_scale: float | None = None  # attention scores are multiplied by it; None: by 1 / sqrt(head_size)
  score_cap: float | None = None  # attention scores are cap * tanh(score / cap)
  scale_scores: bool = True  # attention scores are divided by sqrt(head_size)
  scale_by_layer: bool = False  # attention scores of layer i, from 0, are divided by i + 1
  prefix: bool = False  # prompts are prefixes, whose tokens attend to each other; in training, the batch marks them
  dropout: float = 0.0  # of embeddings and residual branches
  dtype: str = "float32"  # of the computation; parameters are float32
  scan: bool = True
  remat: str = "none"

  def __post_init__(self):
    object.__setattr__(self, "kv_heads", self.kv_heads or self.heads)
    object.__setattr__(self, "head_size", self.head_size or self.width // max(self.heads, 1))
    check(self, "vocabulary length width depth heads kv_heads head_size mlp")
    if self.heads % self.kv_heads:
      raise ValueError(f"heads ({self.heads}) must be a multiple of kv_heads ({self.kv_heads})")
    object.__setattr__(self, "window_layers", tuple(self.window_layers))
    if self.rotary and (int(self.rotary.fraction * self.head_size) or 1) % 2:
      raise ValueError(f"rotary positions need an even head_size, not {self.rotary.fraction * self.head_size:g}")
    if self.qk_norm and self.norm == "layer":
      raise ValueError("qk_norm needs norm 'rms' or 'rms_offset'")


class Decoder(nn.Module):
  """A causal transformer.

  Parameters: `embed`, `stack`, and where the config wants them `positions` (learned), `norm` (pre-norm), `unembed`.
  """

  config: Config
  kind = "decoder"
  causal = True

  def setup(self):
    c = self.config
    scale = (2 * c.depth) ** -0.5  # residual branches start small, so that the sum over depth does not grow
    norm = partial(NORMS[c.norm], epsilon=c.epsilon)
    attention = partial(
      Attention, heads=c.heads, kv_heads=c.kv_heads, head_size=c.head_size, rotary=c.rotary, scale=scale,
      bias=c.bias or c.qkv_bias or c.attention_bias, out_bias=c.bias or c.attention_bias,
      norm=partial(norm, axis="head") if c.qk_norm else None, scale_scores=c.scale_scores,
      scale_by_layer=c.scale_by_layer, score_scale=c.score_scale, score_cap=c.score_cap, window=c.window,
      window_layers=c.window_layers, window_rotary=c.window_rotary,
    )  # fmt: skip
    block = partial(
      Block, norm=norm, attention=attention, mlp=self.make_mlp(c, scale), post=c.post_norm, parallel=c.parallel,
      shared_norm=c.shared_norm, output_norms=c.output_norms, residual_scale=c.residual_scale, dropout=c.dropout,
    )  # fmt: skip
    self.embed = Embed(c.vocabulary, c.width)
    if c.rotary is None:
      self.positions = Embed(c.length + c.position_offset, c.width, axis="positions")
    differ = bool(c.window_layers) or c.scale_by_layer  # a scan computes all layers alike
    self.stack = Stack(block, c.depth, c.scan and not differ, c.remat)
    if not c.post_norm:
      self.norm = norm()
    if not c.tie_embeddings:
      self.unembed = Embed(c.vocabulary, c.width)
    if c.unembed_bias:
      self.unembed_bias = VocabularyBias(c.vocabulary)
    self.drop = nn.Dropout(c.dropout)

  def make_mlp(self, c: Config, scale: float) -> Callable[..., nn.Module]:
    """Returns the constructor of a layer's MLP; scale: of its output projection's initial values."""
    return partial(
      Mlp, width=c.width, mlp=c.mlp, activation=c.activation, gated=c.gated_mlp, bias=c.bias or c.mlp_bias, scale=scale
    )

  def __call__(self, batch: Mapping[str, jax.Array], taps: tuple[str, ...] = ()) -> Hidden:
    """Returns the final vectors [B, L, D] (score them with `logits`) and what was tapped (see Stack)."""
    ids_BxL, positions_BxL = batch["inputs"], positions_of(batch)
    prefix_BxL = batch["prefix"] > 0 if "prefix" in batch else None
    mask = Mask(batch.get("segments"), None, batch.get("allowed"), None, prefix_BxL, causal=True, window=self._window)
    x_BxLxD, mask = self.embed_batch(batch, positions_BxL), prepare_mask(mask, ids_BxL.shape[1])
    x_BxLxD, tapped = self.stack(x_BxLxD, positions_BxL, mask, taps)
    if self.is_initializing() and not self.config.tie_embeddings:
      self.unembed(ids_BxL)
    if self.is_initializing() and self.config.unembed_bias:
      self.unembed_bias()
    return Hidden(self.final_norm(x_BxLxD), taps=tapped)

  def prefill(self, batch: Mapping[str, jax.Array], max_tokens: int) -> tuple[jax.Array, Cache]:
    """Returns the final vectors [B, L, D] of prompts and the cache that holds them; padding has segment 0."""
    ids_BxL, valid_BxL = batch["inputs"], batch["segments"] > 0
    prefix_BxL = batch["prefix"] > 0 if "prefix" in batch else valid_BxL if self.config.prefix else None
    return self.extend(self.init_cache(len(ids_BxL), max_tokens), ids_BxL, valid_BxL, prefix_BxL, **batch)

  def extend(
    self, cache: Cache, tokens_BxL: jax.Array, valid_BxL: jax.Array, prefix_BxL: jax.Array | None = None, **batch
  ) -> tuple[jax.Array, Cache]:
    """Returns the final vectors [B, L, D] of tokens that follow those in the cache, and the extended cache.

    Args:
      batch: what is read of a batch besides its tokens.
    """
    cache, positions_BxL, mask_BxLxM = cache.reserve(valid_BxL, prefix_BxL)
    if self._window:
      mask_BxLxM &= window_mask(positions_BxL, cache.positions_BxM, self._window)
    x_BxLxD = self.embed_batch({**batch, "inputs": tokens_BxL}, positions_BxL)
    x_BxLxD, cache = self.stack.extend(x_BxLxD, positions_BxL, Mask(allowed_BxLxM=mask_BxLxM), cache)
    return self.final_norm(x_BxLxD), cache.advance(x_BxLxD.shape[1])

  @property
  def _window(self) -> int | None:
    """The window of all layers."""
    return None if self.config.window_layers else self.config.window

  def logits(self, x: jax.Array) -> jax.Array:
    """Returns float32 scores [..., V] of final vectors [..., D]."""
    table = self.embed.table if self.config.tie_embeddings else self.unembed.table
    logits, cap = vocabulary_logits(x, table, self.config.vocabulary), self.config.logits_cap
    if self.config.unembed_bias:
      logits += jnp.broadcast_to(self.unembed_bias()[: self.config.vocabulary], logits.shape)
    return logits if cap is None else cap * jnp.tanh(logits / cap)

  def init_cache(self, batch: int, max_tokens: int) -> Cache:
    """Returns an empty cache for `max_tokens` tokens of each of `batch` rows."""
    c = self.config
    return Cache.empty(c.depth, batch, max_tokens, c.kv_heads, c.head_size, jnp.dtype(c.dtype))

  def unembedding(self, params: Tree) -> Table:
    """Returns the table [V padded, D] that scores final vectors, out of this model's parameters."""
    bias = leaves.dense(params["unembed_bias"]["bias"]) if self.config.unembed_bias else None
    return Table(params["embed" if self.config.tie_embeddings else "unembed"]["table"], bias, self.config.logits_cap)

  def decode_layout(self, params: Tree) -> Tree:
    """Returns the parameters with each layer as a tree of its own, as decoding reads them fastest."""
    return params | {"stack": {"layers": decode_layout(params["stack"]["layers"], self.config.depth)}}

  def embed_batch(self, batch: Mapping[str, jax.Array], positions_BxL: jax.Array) -> jax.Array:
    """Returns the input [B, L, D] of the first layer; a subclass may read more of a batch than its tokens."""
    dtype = jnp.dtype(self.config.dtype)
    x_BxLxD = self.embed(batch["inputs"], dtype)
    x_BxLxD = x_BxLxD if self.config.embed_scale == 1 else x_BxLxD * self.config.embed_scale
    if self.config.rotary is None:
      x_BxLxD += self.positions(positions_BxL + self.config.position_offset, dtype)
    return self.drop(constrain(x_BxLxD, "batch", "residual_length", None), deterministic=not self.has_rng("dropout"))

  def final_norm(self, x_BxLxD: jax.Array) -> jax.Array:
    """Returns the final vectors of the last layer's output: normalized, unless every layer ends with a norm."""
    x_BxLxD = x_BxLxD if self.config.post_norm else self.norm(x_BxLxD)
    return x_BxLxD if self.config.logits_scaling == 1 else x_BxLxD / self.config.logits_scaling


class VocabularyBias(nn.Module):
  """A bias for the score of every word."""

  vocabulary: int

  @nn.compact
  def __call__(self) -> jax.Array:
    """Returns the bias [V padded]."""
    zeros, rows = nn.initializers.zeros, padded(self.vocabulary)
    return leaves.dense(leaves.param(self, "bias", zeros, ("vocabulary",), (rows,), self.vocabulary))


def _gpt(width: int, depth: int, heads: int, length: int, **changes) -> dict:
  shape = dict(width=width, depth=depth, heads=heads, kv_heads=heads, head_size=width // heads, mlp=4 * width)
  return dict(vocabulary=50257, length=length) | shape | changes


def _llama(
  width: int, depth: int, heads: int, kv_heads: int, mlp: int, vocabulary: int, length: int, base: float
) -> dict:
  return dict(
    vocabulary=vocabulary, length=length, width=width, depth=depth, heads=heads, kv_heads=kv_heads,
    head_size=width // heads, mlp=mlp, activation="silu", gated_mlp=True, norm="rms", bias=False, tie_embeddings=False,
    rotary=dict(base=base),
  )  # fmt: skip


PRESETS: dict[str, dict] = {
  "gpt": _gpt(768, 12, 12, 512, vocabulary=40478, post_norm=True),
  "gpt2-124m": _gpt(768, 12, 12, 1024),
  "gpt2-355m": _gpt(1024, 24, 16, 1024),
  "gpt2-774m": _gpt(1280, 36, 20, 1024),
  "gpt2-1558m": _gpt(1600, 48, 25, 1024),
  "gpt3-125m": _gpt(768, 12, 12, 2048),
  "gpt3-350m": _gpt(1024, 24, 16, 2048),
  "gpt3-760m": _gpt(1536, 24, 16, 2048),
  "gpt3-1.3b": _gpt(2048, 24, 16, 2048),
  "gpt3-2.7b": _gpt(2560, 32, 32, 2048),
  "gpt3-6.7b": _gpt(4096, 32, 32, 2048),
  "gpt3-13b": _gpt(5120, 40, 40, 2048),
  "gpt3-175b": _gpt(12288, 96, 96, 2048),
  "llama2-7b": _llama(4096, 32, 32, 32, 11008, 32000, 4096, 1e4),
  "llama3-8b": _llama(4096, 32, 32, 8, 14336, 128256, 8192, 5e5),
}
