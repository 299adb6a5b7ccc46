"""A tag for each word, by a bidirectional LSTM on a model of any kind: how ELMo's vectors are used."""

import dataclasses
from collections.abc import Mapping

import jax
import jax.numpy as jnp
from flax import linen as nn

from lmjax.data.batch import Batch
from lmjax.models.tagger import BiLSTMTagger
from lmjax.tasks.base import FrozenModel, Outputs
from lmjax.tasks.downstream import MIX
from lmjax.tasks.tagging import Tagging
from lmjax.utils.metrics import Mean
from lmjax.utils.pytree import Tree

TAGGER = "tagger"


@dataclasses.dataclass(frozen=True)
class BiLSTMTagging(Tagging):
  """-log p(tag | sentence), the mean over weighted words, with a penalty on the weights of ELMo's layers.

    loss = mean over words + mix_penalty * sum over layers of weight^2

  cells: of the LSTM in each direction. dropout: of the vectors that it takes, and of its outputs. mix_penalty: lambda
  of Peters et al. (2018, section 3.3), 0.001 to 1, of the weights before their softmax: a large one keeps the mix close
  to the mean of all layers. The model is trained too, unless `optim.frozen` matches it, as in the paper: `^model/`.
  """

  cells: int = 200
  mix_penalty: float = 0.0

  def __post_init__(self):
    super().__post_init__()
    if self.cells < 1 or self.mix_penalty < 0:
      raise ValueError("cells is at least 1, and mix_penalty at least 0")
    if self.mix_penalty and not self.mix():
      raise ValueError(f"mix_penalty is for an ELMo, whose layers are mixed, not for a {self.model.kind}")

  @property
  def terms(self) -> dict[str, float]:  # type: ignore[override]  # here they depend on a field
    return {"loss": 1.0} | ({"mix": self.mix_penalty} if self.mix_penalty else {})

  def heads(self) -> dict[str, nn.Module]:
    return {TAGGER: BiLSTMTagger(len(self.labels), self.cells, self.dropout, parent=None)} | self.mix()

  def counts(self, batch: Batch) -> dict[str, jax.Array]:
    return dict.fromkeys(self.terms, jnp.sum(batch["weights"]))

  def forward(self, params: Tree, batch: Batch, *, rng: jax.Array | None = None, taps: tuple[str, ...] = ()) -> Outputs:
    hidden = self.vectors(params, batch, rng)
    x_BxLxD, rngs = self.drop(hidden.tokens, rng), {} if rng is None else {"dropout": jax.random.fold_in(rng, 2)}
    variables = {"params": params["heads"][TAGGER]}
    scores = self.heads()[TAGGER].apply(variables, x_BxLxD, batch["segments"], rngs=rngs)
    return Outputs(hidden.tokens, scores, hidden.taps, hidden.pooled)

  def loss(
    self, params: Tree, frozen: Mapping[str, FrozenModel], carry: Tree, batch: Batch, *, rng: jax.Array | None = None
  ) -> tuple[dict[str, Mean], Tree]:
    terms, carry = super().loss(params, frozen, carry, batch, rng=rng)
    if self.mix_penalty:
      weights_N, _ = self.head(MIX, params, jnp.zeros(()))
      terms["mix"] = Mean(jnp.sum(weights_N**2) * terms["loss"].count, terms["loss"].count)
    return terms, carry
