"""Direct preference optimization: a policy from comparisons, without a reward model and without sampling."""

import dataclasses
from collections.abc import Mapping

import jax
import jax.numpy as jnp

from lmjax.data.batch import Batch
from lmjax.models.base import Table
from lmjax.tasks.base import FrozenModel
from lmjax.tasks.preferences import Comparisons
from lmjax.tasks.reference import WithReference
from lmjax.utils.metrics import Mean
from lmjax.utils.pytree import Tree


@dataclasses.dataclass(frozen=True)
class DPO(Comparisons, WithReference):
  """Raises the probability of the better answer over that of the worse, relative to a reference model.

    r(y) = beta (log p(y | x) - log p_reference(y | x)),  h = r(better) - r(worse) - margin
    sigmoid: -(1 - smoothing) log sigmoid(h) - smoothing log sigmoid(-h)   ipo: (h / beta - 1 / (2 beta))^2

  sigmoid: Rafailov et al., 2023, arXiv:2305.18290; with smoothing, the fraction of labels that are wrong, Mitchell,
  2023. ipo: Azar et al., 2023, arXiv:2310.12036, equation 17. per_token divides log p(y | x) by the number of tokens of
  y; with margin (gamma) and without a reference, that is SimPO (Meng et al., 2024, arXiv:2405.14734).

  Metrics: accuracy, the fraction of pairs with r(better) > r(worse); rewards r and their margin.
  """

  form: str = "sigmoid"
  beta: float = 0.1
  smoothing: float = 0.0
  margin: float = 0.0
  per_token: bool = False

  def __post_init__(self):
    super().__post_init__()
    if self.form not in ("sigmoid", "ipo"):
      raise ValueError(f"form is sigmoid or ipo, not {self.form!r}")
    if not self.beta > 0 or not 0 <= self.smoothing < 0.5:
      raise ValueError("beta is above 0, and smoothing at least 0 and below 0.5")
    if self.form == "ipo" and (self.smoothing or self.margin):
      raise ValueError("ipo has neither smoothing nor margin")

  def scored(self, params: Tree, batch: Batch, rng: jax.Array | None = None) -> tuple[jax.Array, Table, jax.Array]:
    return self.hidden(params, batch, rng=rng).tokens, self.model.unembedding(params["model"]), batch["targets"]

  def loss(
    self, params: Tree, frozen: Mapping[str, FrozenModel], carry: Tree, batch: Batch, *, rng: jax.Array | None = None
  ) -> tuple[dict[str, Mean], Tree]:
    weights = batch["weights"]
    log_probs = self.log_probs(params, batch, rng=rng)
    ratios = log_probs - self.reference_log_probs(params, frozen, batch)
    sizes = self.sums(batch, weights)
    exists = sizes > 0
    rewards = self.beta * self.sums(batch, jnp.where(weights > 0, weights * ratios, 0))
    rewards = rewards / jnp.maximum(sizes, 1) if self.per_token else rewards
    (pairs, groups), difference = self.pairs(exists), self.differences(rewards)
    if self.form == "ipo":
      loss = (difference / self.beta - 1 / (2 * self.beta)) ** 2
    else:
      h = difference - self.margin
      loss = -(1 - self.smoothing) * jax.nn.log_sigmoid(h) - self.smoothing * jax.nn.log_sigmoid(-h)
    per_pair = {"loss": loss, "accuracy": (difference > 0).astype(jnp.float32), "reward_margin": difference}
    means = {name: Mean(jnp.sum(pairs * values), groups) for name, values in per_pair.items()}
    logged = {"reward": rewards, "log_prob": self.sums(batch, weights * log_probs) / jnp.maximum(sizes, 1)}
    for name, values in logged.items():
      for side, own in {"chosen": slice(0, 1), "rejected": slice(1, None)}.items():
        there = exists[..., own].astype(jnp.float32)
        means[f"{side}_{name}"] = Mean(jnp.sum(values[..., own] * there), jnp.sum(there))
    return means, carry
