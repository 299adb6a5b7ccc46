"""Bidirectional language modelling: the next word forwards, and the next word backwards (Peters et al., 2018)."""

import dataclasses
from collections.abc import Mapping
from typing import ClassVar

import jax
import jax.numpy as jnp
from flax import linen as nn

from lmjax.data.batch import Batch
from lmjax.layers.einsum import vocabulary_logits
from lmjax.layers.leaves import dense
from lmjax.models.base import Table
from lmjax.models.elmo import DIRECTIONS
from lmjax.models.heads import Softmax
from lmjax.tasks.base import Base, FrozenModel, Outputs, Spec
from lmjax.tasks.losses import cross_entropy
from lmjax.utils.metrics import Mean
from lmjax.utils.pytree import Tree


@dataclasses.dataclass(frozen=True)
class BidirectionalLM(Base):
  """-log p(word | those before it) forwards and -log p(word | those after it) backwards, of text in streams.

    loss = mean over words forwards + mean over words backwards

  characters: of a word, at most. negatives: 0 scores all words; else training scores the true one against that many
  sampled ones (see `sampled_cross_entropy`); evaluation always scores all. States continue from batch to batch, in
  `carry`.
  """

  characters: int = 50
  negatives: int = 0

  terms: ClassVar[Mapping[str, float]] = dict.fromkeys(DIRECTIONS, 1.0)

  def __post_init__(self):
    if self.negatives < 0:
      raise ValueError(f"negatives is at least 0, not {self.negatives}")
    if not self.model.config.depth:
      raise ValueError("model.depth is 0: a bidirectional language model has at least one LSTM in each direction")

  def spec(self, batch: int, length: int) -> Spec:
    words, spelled = (batch, length), (batch, length, self.characters)
    shapes = dict(characters=spelled, targets=words, reverse_characters=spelled, reverse_targets=words)
    spec = {key: jax.ShapeDtypeStruct(shape, jnp.int32) for key, shape in shapes.items()}
    return spec | {"weights": jax.ShapeDtypeStruct(words, jnp.float32)}

  def heads(self) -> dict[str, nn.Module]:
    return {"softmax": Softmax(self.model.config.vocabulary, parent=None)}

  def initial_carry(self, batch: int) -> Tree:
    return self.model.empty(batch)

  def forward(self, params: Tree, batch: Batch, *, rng: jax.Array | None = None, taps: tuple[str, ...] = ()) -> Outputs:
    """Returns the top layer [B, L, 2 D], scores of the next word forwards [B, L, V], and as tap `hidden` all layers."""
    hidden = self.hidden(params, batch, rng=rng, taps=taps)
    vocabulary = self.model.config.vocabulary
    x_BxLxD, table = self._forwards(params, hidden.tokens)
    logits = vocabulary_logits(x_BxLxD, table.values, vocabulary) + table.bias[None, None, :vocabulary]
    return Outputs(hidden.tokens, logits, hidden.taps)

  def scored(self, params: Tree, batch: Batch, rng: jax.Array | None = None) -> tuple[jax.Array, Table, jax.Array]:
    """Returns those of the forward direction."""
    return *self._forwards(params, self.hidden(params, batch, rng=rng).tokens), batch["targets"]

  def counts(self, batch: Batch) -> dict[str, jax.Array]:
    return dict.fromkeys(DIRECTIONS, jnp.sum(batch["weights"]))

  def loss(
    self, params: Tree, frozen: Mapping[str, FrozenModel], carry: Tree, batch: Batch, *, rng: jax.Array | None = None
  ) -> tuple[dict[str, Mean], Tree]:
    count = jnp.sum(batch["weights"])
    terms, after, keys = {}, {}, (None, None) if rng is None else jax.random.split(rng)
    for direction, prefix, key in zip(DIRECTIONS, ("", "reverse_"), keys, strict=True):

      def scan(model, characters, states, direction=direction):
        return model.scan_direction(direction, model.spell(characters), states)

      layers, after[direction] = self.model.apply(
        {"params": self.compute(params)},
        batch[prefix + "characters"],
        carry[direction],
        method=scan,
        rngs=self.rngs(key),
      )
      targets, size = batch[prefix + "targets"], self.model.config.vocabulary
      table = self.head("softmax", params, layers[-1])
      if self.negatives and key is not None:
        key = jax.random.fold_in(key, 1)
        total = sampled_cross_entropy(key, layers[-1], table, targets, batch["weights"], size, self.negatives)
      else:
        total, _ = cross_entropy(layers[-1], table, targets, batch["weights"], size)
      terms[direction] = Mean(total, count)
    return terms, jax.lax.stop_gradient(after)

  def _forwards(self, params: Tree, tokens: jax.Array) -> tuple[jax.Array, Table]:
    """Returns the forward half of the top layer, and what scores it."""
    x_BxLxD = tokens[..., : self.model.config.width]
    return x_BxLxD, self.head("softmax", params, x_BxLxD)


def sampled_cross_entropy(
  rng: jax.Array,
  x_BxLxD: jax.Array,
  table: Table,
  targets_BxL: jax.Array,
  weights_BxL: jax.Array,
  vocabulary: int,
  negatives: int,
) -> jax.Array:
  """Sums the weighted negative log-likelihood with Z estimated from S words drawn by q, the same ones for all targets.

    Z ~ exp(s(t)) + sum over drawn k != t of exp(s(k)) / (S q(k)),   q(k) = log((k + 2) / (k + 1)) / log(V + 1)

  The estimate of Z is unbiased, and exact as S grows (Jean et al., 2015, arXiv:1412.2007, with its true word counted by
  itself). q is log-uniform: made for words numbered by frequency.
  """
  table_VxD, bias_V = dense(table.values), table.bias
  u_S = jax.random.uniform(rng, (negatives,))
  drawn_S = jnp.minimum(jnp.exp(u_S * jnp.log(vocabulary + 1.0)).astype(jnp.int32) - 1, vocabulary - 1)
  q_S = jnp.log((drawn_S + 2) / (drawn_S + 1)) / jnp.log(vocabulary + 1.0)
  x_TxD = x_BxLxD.reshape(-1, x_BxLxD.shape[-1])
  targets_T, weights_T = targets_BxL.reshape(-1), weights_BxL.reshape(-1)
  true_T = jnp.sum(x_TxD * table_VxD[targets_T].astype(x_TxD.dtype), axis=-1, dtype=jnp.float32) + bias_V[targets_T]
  table_SxD = table_VxD[drawn_S].astype(x_TxD.dtype)
  others_TxS = jnp.einsum("td,sd->ts", x_TxD, table_SxD, preferred_element_type=jnp.float32)
  others_TxS += (bias_V[drawn_S] - jnp.log(negatives * q_S))[None]
  others_TxS = jnp.where(drawn_S[None] == targets_T[:, None], -jnp.inf, others_TxS)
  log_z_T = jax.nn.logsumexp(jnp.concatenate([true_T[:, None], others_TxS], axis=1), axis=1)
  return jnp.sum(weights_T * (log_z_T - true_T))
