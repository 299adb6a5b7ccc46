"""The interface of all model families: one way to call them, whatever they read."""

from collections.abc import Mapping
from typing import Any, ClassVar, Literal, NamedTuple, Protocol

import jax
from flax import struct

from lmjax.layers.leaves import Parameter
from lmjax.utils.pytree import Tree

Kind = Literal["decoder", "encoder", "encoder_decoder", "bidirectional_lm"]
GENERATES = ("decoder", "encoder_decoder")  # kinds with `prefill` and `extend`


@struct.dataclass
class Hidden:
  """What a forward pass computes: final vectors, a pooled vector where the model has one, and the taps."""

  tokens: jax.Array  # [B, L, D], of the decoder where there is one
  pooled: jax.Array | None = None  # [B, D]
  taps: dict[str, jax.Array] = struct.field(default_factory=dict)


class Table(NamedTuple):
  """What scores final vectors: a table [V padded, D], a bias [V padded] or None, a cap of the scores or None."""

  values: Parameter
  bias: jax.Array | None = None
  cap: float | None = None


class Model(Protocol):
  """A Linen module with one frozen `config`, used as a pure function of its parameters.

  A batch is a mapping of the keys in `data.batch.LEGEND`; each family reads the keys it needs, and positions and
  segments may be missing: one document a row then.
  """

  config: Any
  kind: ClassVar[Kind]
  causal: ClassVar[bool]  # whether a token sees only those before it

  def __call__(self, batch: Mapping[str, jax.Array], taps: tuple[str, ...] = ()) -> Hidden:
    """Returns the final vectors; taps: `hidden` [N, B, L, D] and `attention` [N, B, H, L, L] of all layers."""

  def logits(self, x: jax.Array) -> jax.Array:
    """Returns float32 scores [..., V] of final vectors [..., D]; of kinds that generate."""

  def unembedding(self, params: Tree) -> Table:
    """Returns what scores final vectors, out of this model's parameters."""

  def prefill(self, batch: Mapping[str, jax.Array], max_tokens: int) -> tuple[jax.Array, Any]:
    """Returns the final vectors [B, L, D] of prompts and their cache, with space for `max_tokens` tokens.

    Tokens with segment 0 are padding. An encoder-decoder encodes `inputs`; its prompts are the `decoder_inputs`.
    """

  def extend(self, cache: Any, tokens_BxL: jax.Array, valid_BxL: jax.Array) -> tuple[jax.Array, Any]:
    """Returns the final vectors [B, L, D] of tokens that follow those in the cache, and the extended cache."""

  def decode_layout(self, params: Tree) -> Tree:
    """Returns the parameters laid out as decoding reads them fastest."""


def positions_of(batch: Mapping[str, jax.Array], key: str = "inputs", positions: str = "positions") -> jax.Array:
  """Returns the positions [B, L] of a batch, counted from 0 where it has none."""
  if positions in batch:
    return batch[positions]
  ids = batch[key]
  return jax.lax.broadcasted_iota("int32", ids.shape, 1)
