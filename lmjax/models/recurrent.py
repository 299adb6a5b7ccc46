"""The recurrent decoder: an LSTM language model.

Zaremba et al. (2014), arXiv:1409.2329; tied embeddings: Press and Wolf (2017), arXiv:1608.05859; variational dropout:
Gal and Ghahramani (2016), arXiv:1512.05287.
"""

import dataclasses
from collections.abc import Mapping

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax import struct

from lmjax.layers.einsum import Embed, vocabulary_logits
from lmjax.layers.lstm import LSTM, State
from lmjax.models.base import Hidden, Table
from lmjax.models.config import check
from lmjax.parallel.sharding import constrain
from lmjax.utils.errors import UserError
from lmjax.utils.pytree import Tree


@dataclasses.dataclass(frozen=True)
class Config:
  """The shape of an LSTM language model and how it is computed."""

  vocabulary: int  # comes from the tokenizer
  length: int  # of a row, in tokens; comes from data.length. The model itself has no longest one
  width: int = 650  # of embeddings and outputs
  cells: int = 650  # where there are more of them than `width`, outputs are projected
  depth: int = 2
  clip: float = 0.0  # largest absolute value of cells and projections; 0 for any
  tie_embeddings: bool = True  # the embedding table also scores the next token
  dropout: float = 0.0  # variational: one mask a row for the inputs and outputs of every layer, and for its last output
  dtype: str = "float32"  # of the products; parameters and state are float32

  def __post_init__(self):
    check(self, "vocabulary length width cells depth")
    if self.clip < 0:
      raise ValueError(f"clip is at least 0, not {self.clip}")


@struct.dataclass
class Memory:
  """The cache of decoding: the state of each layer, which changes at valid tokens only."""

  states: tuple[State, ...]

  def reorder(self, rows_B: jax.Array) -> "Memory":
    """Returns the memory with row i taken from row rows_B[i]."""
    return jax.tree.map(lambda x: jnp.take(x, rows_B, axis=0), self)


class Recurrent(nn.Module):
  """A stack of LSTM layers over word embeddings.

  Parameters: `embed`, `layers_0`, `layers_1`, ..., and `unembed` if not tied.
  """

  config: Config
  kind = "decoder"
  causal = True

  def setup(self):
    c = self.config
    self.embed = Embed(c.vocabulary, c.width, deviation=c.width**-0.5)
    self.layers = [LSTM(c.cells, c.width, c.clip) for _ in range(c.depth)]
    if not c.tie_embeddings:
      self.unembed = Embed(c.vocabulary, c.width, deviation=c.width**-0.5)
    self.drop = nn.Dropout(c.dropout, broadcast_dims=(1,))

  def __call__(self, batch: Mapping[str, jax.Array], taps: tuple[str, ...] = ()) -> Hidden:
    """Returns the final vectors [B, L, D] and what was tapped: `hidden` [N, B, L, D].

    Every row, and within it every packed document, begins with an empty state.
    """
    if "prefix" in batch:
      raise UserError("an LSTM reads from left to right: it has no prefix whose tokens see each other")
    ids_BxL = batch["inputs"]
    x_BxLxD = constrain(self.embed(ids_BxL, jnp.dtype(self.config.dtype)), "batch", None, None)
    states = tuple(layer.empty(len(ids_BxL)) for layer in self.layers)
    resets_BxL = batch["positions"] == 0 if "positions" in batch else None
    valid_BxL = batch["segments"] > 0 if "segments" in batch else None
    x_BxLxD, _, outputs = self._run(x_BxLxD, states, valid_BxL, resets_BxL)
    if self.is_initializing() and not self.config.tie_embeddings:
      self.unembed(ids_BxL)
    return Hidden(x_BxLxD, taps={"hidden": jnp.stack(outputs)} if "hidden" in taps else {})

  def prefill(self, batch: Mapping[str, jax.Array], max_tokens: int) -> tuple[jax.Array, Memory]:
    """Returns the final vectors [B, L, D] of prompts and the state after them; padding has segment 0."""
    ids_BxL = batch["inputs"]
    return self.extend(self.init_cache(len(ids_BxL), max_tokens), ids_BxL, batch["segments"] > 0)

  def extend(self, cache: Memory, tokens_BxL: jax.Array, valid_BxL: jax.Array) -> tuple[jax.Array, Memory]:
    """Returns the final vectors [B, L, D] of tokens that follow those in the cache, and the extended cache."""
    x_BxLxD = self.embed(tokens_BxL, jnp.dtype(self.config.dtype))
    x_BxLxD, states, _ = self._run(x_BxLxD, cache.states, valid_BxL, None)
    return x_BxLxD, Memory(states)

  def logits(self, x: jax.Array) -> jax.Array:
    """Returns float32 scores [..., V] of final vectors [..., D]."""
    table = self.embed.table if self.config.tie_embeddings else self.unembed.table
    return vocabulary_logits(x, table, self.config.vocabulary)

  def init_cache(self, batch: int, max_tokens: int) -> Memory:
    """Returns the initial state of `batch` rows; its size does not depend on `max_tokens`."""
    return Memory(tuple(layer.empty(batch) for layer in self.layers))

  def unembedding(self, params: Tree) -> Table:
    """Returns the table [V padded, D] that scores final vectors, out of this model's parameters."""
    return Table(params["embed" if self.config.tie_embeddings else "unembed"]["table"])

  def decode_layout(self, params: Tree) -> Tree:
    """Returns the parameters unchanged."""
    return params

  def final_norm(self, x_BxLxD: jax.Array) -> jax.Array:
    """Returns the final vectors of the last layer's output: an LSTM does not normalize them."""
    return x_BxLxD

  def _run(self, x_BxLxD, states, valid_BxL, resets_BxL):
    """Returns the last layer's outputs, the states and every layer's outputs."""
    after, outputs = [], []
    keep = not self.has_rng("dropout")
    x_BxLxD = self.drop(x_BxLxD, deterministic=keep)
    for layer, state in zip(self.layers, states, strict=True):
      mask = self.drop(jnp.ones((len(x_BxLxD), 1, self.config.width)), deterministic=keep)[:, 0]
      x_BxLxD, state = layer(x_BxLxD, state, valid_BxL, resets_BxL, None if keep else mask)
      outputs.append(x_BxLxD)
      after.append(state)
      x_BxLxD = self.drop(x_BxLxD, deterministic=keep)
    return x_BxLxD, tuple(after), outputs


PRESETS: dict[str, dict] = {
  "lstm-small": dict(width=256, cells=256, depth=2),
  "lstm-medium": dict(width=650, cells=650, depth=2),
  "lstm-large": dict(width=1500, cells=1500, depth=2),
}
