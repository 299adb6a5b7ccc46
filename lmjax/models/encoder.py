"""The encoder family: BERT in its sizes, and the shapes of DistilBERT, ELECTRA and ALBERT.

Devlin et al. (2019), arXiv:1810.04805; the smaller BERTs of Turc et al. (2019), arXiv:1908.08962; Sanh et al. (2019),
arXiv:1910.01108; Clark et al. (2020), arXiv:2003.10555; Lan et al. (2020), arXiv:1909.11942.
"""

import dataclasses
from collections.abc import Mapping
from functools import partial

import jax
import jax.numpy as jnp
from flax import linen as nn

from lmjax.layers.attention import Attention
from lmjax.layers.block import Block
from lmjax.layers.einsum import Einsum, Embed
from lmjax.layers.kernels.dispatch import prepare_mask
from lmjax.layers.kernels.mask import Mask
from lmjax.layers.mlp import Mlp
from lmjax.layers.norms import NORMS
from lmjax.layers.stack import Stack
from lmjax.models.base import Hidden, Table, positions_of
from lmjax.models.config import check
from lmjax.parallel.sharding import constrain
from lmjax.utils.pytree import Tree


@dataclasses.dataclass(frozen=True)
class Config:
  """The shape of an encoder and how it is computed."""

  vocabulary: int  # comes from the tokenizer
  length: int  # the longest sequence, in tokens; comes from data.length
  width: int = 768
  depth: int = 12
  heads: int = 12
  head_size: int = 64
  mlp: int = 3072
  embedding: int | None = None  # of a token, projected to the width; None is the width, without a projection
  shared_layers: bool = False  # one set of parameters for all layers
  offset: int = 0  # rows of the table of positions before that of the first token (RoBERTa has 2)
  token_types: int = 2  # kinds of sentence, A and B; 0 for none
  pooler: bool = True
  tie_embeddings: bool = True  # the embedding table also scores masked tokens
  activation: str = "gelu"
  epsilon: float = 1e-12
  dropout: float = 0.0  # of embeddings and residual branches
  dtype: str = "float32"  # of the computation; parameters are float32
  scan: bool = True
  remat: str = "none"

  def __post_init__(self):
    check(self, "vocabulary length width depth heads head_size mlp")
    if self.embedding is not None and self.embedding < 1:
      raise ValueError(f"embedding is at least 1, not {self.embedding}")
    if self.token_types < 0:
      raise ValueError(f"token_types is at least 0, not {self.token_types}")


class Encoder(nn.Module):
  """A bidirectional transformer, post-norm.

  Parameters: `embed`, `positions`, `token_types` (if there are any), `embed_norm`, `project` (of an embedding size),
  `stack`, `pooler` (if wanted), `unembed` (if not tied).
  """

  config: Config
  kind = "encoder"
  causal = False

  def setup(self):
    c = self.config
    norm = partial(NORMS["layer"], epsilon=c.epsilon)
    block = partial(
      Block,
      norm=norm,
      attention=partial(Attention, heads=c.heads, kv_heads=c.heads, head_size=c.head_size),
      mlp=partial(Mlp, width=c.width, mlp=c.mlp, activation=c.activation),
      post=True,
      dropout=c.dropout,
    )
    size = c.embedding or c.width
    self.embed = Embed(c.vocabulary, size)
    self.positions = Embed(c.length + c.offset, size, axis="positions")
    if c.token_types:
      self.token_types = Embed(c.token_types, size, axis="token_types")
    self.embed_norm = norm()
    if c.embedding:
      self.project = Einsum("BLE,ED->BLD", {"D": c.width, "E": size})
    self.stack = Stack(block, 1 if c.shared_layers else c.depth, c.scan, c.remat)
    if c.pooler:
      self.pooler = Einsum("BD,DE->BE", {"D": c.width, "E": c.width})
    if not c.tie_embeddings:
      self.unembed = Embed(c.vocabulary, size)
    self.drop = nn.Dropout(c.dropout)

  def __call__(self, batch: Mapping[str, jax.Array], taps: tuple[str, ...] = ()) -> Hidden:
    """Returns the final vectors [B, L, D], the pooled first one [B, D] if there is a pooler, and what was tapped.

    Tokens attend to those of their own segment; padding has segment 0.
    """
    c, ids_BxL, positions_BxL = self.config, batch["inputs"], positions_of(batch)
    dtype = jnp.dtype(c.dtype)
    x_BxLxD = self.embed(ids_BxL, dtype) + self.positions(positions_BxL + c.offset, dtype)
    if c.token_types:
      x_BxLxD += self.token_types(batch.get("token_types", jnp.zeros_like(ids_BxL)), dtype)
    x_BxLxD = constrain(self.embed_norm(x_BxLxD), "batch", "residual_length", None)
    x_BxLxD = self.drop(x_BxLxD, deterministic=not self.has_rng("dropout"))
    x_BxLxD = self.project(x_BxLxD) if c.embedding else x_BxLxD
    mask = prepare_mask(Mask(batch.get("segments")), ids_BxL.shape[1])
    tapped = []
    for _ in range(c.depth if c.shared_layers else 1):
      x_BxLxD, tap = self.stack(x_BxLxD, positions_BxL, mask, taps)
      tapped.append(tap)
    taken = jax.tree.map(lambda *layers: jnp.concatenate(layers), *tapped) if c.shared_layers else tapped[0]
    if self.is_initializing() and not c.tie_embeddings:
      self.unembed(ids_BxL)
    return Hidden(x_BxLxD, jnp.tanh(self.pooler(x_BxLxD[:, 0])) if c.pooler else None, taken)

  def unembedding(self, params: Tree) -> Table:
    """Returns the table [V padded, D] that scores vectors, out of this model's parameters."""
    return Table(params["embed" if self.config.tie_embeddings else "unembed"]["table"])


def _bert(depth: int, width: int, heads: int, **changes) -> dict:
  shape = dict(width=width, depth=depth, heads=heads, head_size=width // heads, mlp=4 * width)
  return dict(vocabulary=30522, length=512) | shape | changes


PRESETS: dict[str, dict] = {
  "bert-tiny": _bert(2, 128, 2),
  "bert-mini": _bert(4, 256, 4),
  "bert-small": _bert(4, 512, 8),
  "bert-medium": _bert(8, 512, 8),
  "bert-base": _bert(12, 768, 12),
  "bert-large": _bert(24, 1024, 16),
  "distilbert": _bert(6, 768, 12, token_types=0, pooler=False),
  "electra-small": _bert(12, 256, 4, embedding=128, pooler=False),
  "albert-base": _bert(12, 768, 12, vocabulary=30_000, embedding=128, shared_layers=True, activation="gelu_tanh"),
}
