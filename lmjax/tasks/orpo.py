"""Odds ratio preference optimization: fine-tuning on the better answer and a preference in one loss, no reference."""

import dataclasses
from collections.abc import Mapping

import jax
import jax.numpy as jnp

from lmjax.data.batch import Batch
from lmjax.models.base import Table
from lmjax.tasks.base import FrozenModel
from lmjax.tasks.preferences import Comparisons
from lmjax.utils.metrics import Mean
from lmjax.utils.pytree import Tree

LEAST = 1e-6  # distance of log P from 0, where the odds are infinite


@dataclasses.dataclass(frozen=True)
class ORPO(Comparisons):
  """Raises the odds of the better answer over those of the worse (Hong et al., 2024, arXiv:2403.07691).

    P(y) = exp(mean over the tokens of y of log p),  odds(y) = P(y) / (1 - P(y))
    loss = nll + beta odds,  odds = -log sigmoid(log odds(better) - log odds(worse))

  nll is that of the tokens of the best answers, odds the mean over groups of the mean over their pairs. beta: lambda of
  the paper. Metrics: accuracy, the fraction of pairs with odds(better) > odds(worse), and the mean log odds ratio.
  """

  beta: float = 0.1

  def __post_init__(self):
    super().__post_init__()
    if not self.beta > 0:
      raise ValueError(f"beta must be above 0, not {self.beta}")

  @property
  def terms(self) -> dict[str, float]:  # type: ignore[override]  # here they depend on a field
    return {"nll": 1.0, "odds": self.beta}

  def counts(self, batch: Batch) -> dict[str, jax.Array]:
    sizes = self.sums(batch, batch["weights"])
    return {"nll": jnp.sum(sizes[..., 0]), "odds": self.pairs(sizes > 0)[1]}

  def scored(self, params: Tree, batch: Batch, rng: jax.Array | None = None) -> tuple[jax.Array, Table, jax.Array]:
    return self.hidden(params, batch, rng=rng).tokens, self.model.unembedding(params["model"]), batch["targets"]

  def loss(
    self, params: Tree, frozen: Mapping[str, FrozenModel], carry: Tree, batch: Batch, *, rng: jax.Array | None = None
  ) -> tuple[dict[str, Mean], Tree]:
    weights = batch["weights"]
    log_probs = jnp.where(weights > 0, weights * self.log_probs(params, batch, rng=rng), 0)
    sums, sizes = self.sums(batch, log_probs), self.sums(batch, weights)
    mean = jnp.minimum(sums / jnp.maximum(sizes, 1), -LEAST)
    (pairs, groups), ratio = self.pairs(sizes > 0), self.differences(mean - jnp.log(-jnp.expm1(mean)))
    per_pair = {
      "odds": -jax.nn.log_sigmoid(ratio),
      "accuracy": (ratio > 0).astype(jnp.float32),
      "log_odds_ratio": ratio,
    }
    means = {name: Mean(jnp.sum(pairs * values), groups) for name, values in per_pair.items()}
    return means | {"nll": Mean(-jnp.sum(sums[..., 0]), jnp.sum(sizes[..., 0]))}, carry
