"""Kahneman-Tversky optimization: a policy from answers that are desirable or not, without comparisons."""

import dataclasses
import functools
from collections.abc import Iterable, Mapping

import jax
import jax.numpy as jnp

from lmjax.data.batch import Batch
from lmjax.models.base import Table
from lmjax.parallel.sharding import constrain
from lmjax.tasks.base import Collected, FrozenModel, Spec
from lmjax.tasks.preferences import Comparisons
from lmjax.tasks.reference import WithReference
from lmjax.utils.metrics import Mean
from lmjax.utils.pytree import Tree


@dataclasses.dataclass(frozen=True)
class KTO(Comparisons, WithReference):
  """Raises the utility of answers for people whose losses weigh more (Ethayarajh et al., 2024, arXiv:2402.01306).

    r(x, y) = log p(y | x) - log p_reference(y | x),  z = max(0, mean of r(x, y') over answers y' to other prompts)
    value = desirable sigmoid(beta (r - z)) of a desirable answer, undesirable sigmoid(beta (z - r)) of another
    loss = mean over answers of desirable - value, or undesirable - value   (equations 7 and 8)

  z estimates the KL of the policy to its reference: of the whole batch, before each update, without a gradient; of a
  validation batch, by itself. In a row, answer 1 of group g is the judged one, and answer 2 one to another prompt
  (see `lmjax.data.objectives.judgements`).

  beta: how far the policy may move. desirable, undesirable: the weights lambda of both kinds; where one kind is rarer,
  the paper keeps (desirable x number) / (undesirable x number) from 1 to 4/3.

  Metrics: accuracy, the fraction of answers with r > z where they are desirable and r < z where not; beta r of both
  kinds; kl, which is z.
  """

  beta: float = 0.1
  desirable: float = 1.0
  undesirable: float = 1.0

  collects = True

  def __post_init__(self):
    super().__post_init__()
    if self.answers != 2 or not self.beta > 0 or min(self.desirable, self.undesirable) < 0:
      raise ValueError("beta is above 0, desirable and undesirable at least 0, and answers 2, one to another prompt")

  def reads(self, batch: int, length: int) -> Spec:
    return super().spec(batch, length) | {"tags": jax.ShapeDtypeStruct((batch, length), jnp.int32)}

  def spec(self, batch: int, length: int) -> Spec:
    spec = self.reads(batch, length)
    return spec | {"reference_log_probs": spec["weights"], "kl": jax.ShapeDtypeStruct((batch,), jnp.float32)}

  def counts(self, batch: Batch) -> dict[str, jax.Array]:
    return {"loss": jnp.sum((self.sums(batch, batch["weights"])[..., 0] > 0).astype(jnp.float32))}

  def scored(self, params: Tree, batch: Batch, rng: jax.Array | None = None) -> tuple[jax.Array, Table, jax.Array]:
    return self.hidden(params, batch, rng=rng).tokens, self.model.unembedding(params["model"]), batch["targets"]

  def ratios(self, log_probs: jax.Array, reference: jax.Array, batch: Batch) -> jax.Array:
    """Returns r of the judged answer and of that to another prompt, of each group [B, groups, 2]."""
    weights = batch["weights"]
    return self.sums(batch, jnp.where(weights > 0, weights * (log_probs - reference), 0))

  def measure(self, params: Tree, frozen: Mapping[str, FrozenModel], batch: Batch) -> dict[str, jax.Array]:
    """Returns what the loss takes as constants: log p_reference of every token [B, L], and z in every row [B]."""
    reference = self.reference_log_probs(params, frozen, batch)
    log_probs = jax.lax.stop_gradient(self.log_probs(params, batch))
    exists = (self.sums(batch, batch["weights"])[..., 1] > 0).astype(jnp.float32)
    mean = jnp.sum(exists * self.ratios(log_probs, reference, batch)[..., 1]) / jnp.maximum(jnp.sum(exists), 1)
    return {"reference_log_probs": reference, "kl": jnp.broadcast_to(jnp.maximum(mean, 0), exists.shape[:1])}

  def collect(
    self, params: Tree, frozen: Mapping[str, FrozenModel], carry: Tree, batch: Batch, rng: jax.Array
  ) -> Iterable[Collected]:
    yield Collected(batch | _measure(self, params, dict(frozen), batch))

  def loss(
    self, params: Tree, frozen: Mapping[str, FrozenModel], carry: Tree, batch: Batch, *, rng: jax.Array | None = None
  ) -> tuple[dict[str, Mean], Tree]:
    if "kl" not in batch:
      batch = batch | self.measure(params, frozen, batch)
    log_probs, weights = self.log_probs(params, batch, rng=rng), batch["weights"]
    ratios = self.ratios(log_probs, batch["reference_log_probs"], batch)[..., 0]
    exists = (self.sums(batch, weights)[..., 0] > 0).astype(jnp.float32)
    good = self.sums(batch, weights * batch["tags"])[..., 0] > 0
    gain = jnp.where(good, 1, -1) * (ratios - batch["kl"][:, None])  # of a desirable answer r - z, else z - r
    loss = jnp.where(good, self.desirable, self.undesirable) * (1 - jax.nn.sigmoid(self.beta * gain))
    rewards = {"desirable_reward": exists * good, "undesirable_reward": exists * ~good}
    values = {"loss": loss, "accuracy": (gain > 0).astype(jnp.float32)}
    means = {name: Mean(jnp.sum(exists * own), jnp.sum(exists)) for name, own in values.items()}
    means |= {name: Mean(self.beta * jnp.sum(own * ratios), jnp.sum(own)) for name, own in rewards.items()}
    return means | {"kl": Mean(jnp.sum(batch["kl"]), jnp.float32(len(batch["kl"])))}, carry


@functools.partial(jax.jit, static_argnums=0)
def _measure(task: KTO, params: Tree, frozen: dict[str, FrozenModel], batch: Batch) -> dict[str, jax.Array]:
  measured = task.measure(params, frozen, batch)
  return {key: constrain(value, *("batch", "length")[: value.ndim]) for key, value in measured.items()}
