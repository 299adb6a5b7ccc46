"""Proximal policy optimization: step 3 of InstructGPT (Ouyang et al., 2022, arXiv:2203.02155)."""

import dataclasses
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from lmjax.data.batch import Batch
from lmjax.models.value import Value
from lmjax.tasks.base import FrozenModel, Spec
from lmjax.tasks.rl.advantages import ESTIMATORS, explained_variance, gae, kl_estimate, whiten
from lmjax.tasks.rl.losses import clipped_loss
from lmjax.tasks.rl.policy import Arrays, Policy, at_end, reference_of
from lmjax.tasks.rl.rollout import Rollout
from lmjax.utils.metrics import Mean
from lmjax.utils.pytree import Tree


@dataclasses.dataclass(frozen=True)
class PPO(Policy):
  """Raises the probability of tokens that led to more reward than a value function expected.

    r_t = -kl x KL_t + (reward of the answer, at its last token)
    A, R = generalised advantages and returns of r and V, A whitened over each minibatch
    ratio = p(token) / p_old(token)
    policy = mean over tokens of max(-A ratio, -A clip(ratio, 1 - clip, 1 + clip))
    value = mean over tokens of max((V - R)^2, (V_old + clip(V - V_old, +-value_clip) - R)^2) / 2

  Schulman et al., 2017, arXiv:1707.06347, equation 7; for language models Ziegler et al., 2019, arXiv:1909.08593.
  KL_t is an estimate of KL(p || p_reference), see `kl_estimate`. V is a head on the policy's vectors, 0 at first.

  kl: its coefficient, at first if target_kl is set, and fixed if that is 0. target_kl: of a whole answer; after each
  rollout of n answers, kl *= 1 + clip(KL / target_kl - 1, +-0.2) n / kl_horizon (Ziegler et al., section 2.2).
  discount, decay: gamma and lambda of the advantages. whiten_rewards: scale r to a variance of 1 first.

  Metrics: kl, of a whole answer to the reference; clip_fraction and value_clip_fraction, the tokens whose gradient is
  cut off; policy_kl, between the policy that learns and the one that wrote the answers; explained_variance of R by V.
  """

  kl: float = 0.05
  kl_estimator: str = "k1"
  target_kl: float = 0.0
  kl_horizon: int = 10_000
  discount: float = 1.0
  decay: float = 0.95
  clip: float = 0.2
  value_clip: float = 0.2
  value_coefficient: float = 0.1
  whiten_rewards: bool = False

  def __post_init__(self):
    super().__post_init__()
    if self.kl_estimator not in ESTIMATORS:
      raise ValueError(f"kl_estimator is one of {', '.join(ESTIMATORS)}, not {self.kl_estimator!r}")
    if min(self.kl, self.target_kl) < 0 or not (0 <= self.discount <= 1 and 0 <= self.decay <= 1):
      raise ValueError("kl and target_kl are at least 0; discount and decay are from 0 to 1")
    if not 0 < self.clip < 1 or not self.value_clip > 0 or self.kl_horizon < 1:
      raise ValueError("clip is above 0 and below 1, value_clip above 0, kl_horizon at least 1")
    if self.target_kl and not self.kl:
      raise ValueError("with target_kl, kl is the coefficient to start from, above 0")

  @property
  def terms(self) -> dict[str, float]:  # type: ignore[override]  # here they depend on a field
    return {"policy": 1.0, "value": self.value_coefficient}

  def heads(self) -> dict[str, nn.Module]:
    return {"value": Value(parent=None)}

  def experience_keys(self) -> tuple[str, ...]:
    return ("old_log_probs", "old_values", "advantages", "returns")

  def spec(self, batch: int, length: int) -> Spec:
    spec = super().spec(batch, length)
    growth = {"kl_growth": jax.ShapeDtypeStruct(spec["inputs"].shape[:1], jnp.float32)}
    return spec | growth if self.target_kl else spec

  def initial_carry(self, batch: int) -> Tree:
    return super().initial_carry(batch) | ({"kl": jnp.float32(self.kl)} if self.target_kl else {})

  def measure(self, params: Tree, frozen: Mapping[str, FrozenModel], batch: Batch) -> dict[str, jax.Array]:
    x, log_probs, entropy = self.policy(params, batch)
    measured = {"old_log_probs": log_probs, "entropy": entropy, "old_values": self.head("value", params, x)}
    return measured | self.measure_reference(params, frozen, batch)

  def experience(
    self, carry: Tree, rollout: Rollout, measured: Arrays, scores: np.ndarray
  ) -> tuple[Arrays, dict[str, float]]:
    mask, log_ratio = rollout.mask, measured["old_log_probs"] - reference_of(measured)
    coefficient = float(carry["kl"]) if self.target_kl else self.kl
    rewards = at_end(scores, mask) - coefficient * kl_estimate(log_ratio, self.kl_estimator) * mask
    if self.whiten_rewards:
      rewards = whiten(rewards, mask, shift=False)
    values = measured["old_values"] * mask
    advantages, returns = gae(rewards, values, mask, self.discount, self.decay)
    experience = {"old_log_probs": measured["old_log_probs"], "old_values": values}
    experience |= {"advantages": advantages, "returns": returns}
    kl = float((log_ratio * mask).sum(axis=1).mean())
    if self.target_kl:
      error = np.clip(kl / self.target_kl - 1, -0.2, 0.2)
      growth = np.log1p(error * len(mask) / self.kl_horizon) / (len(mask) * self.epochs)  # of each row and epoch
      experience["kl_growth"] = np.full(len(mask), growth, np.float32)
    metrics = {"kl": kl, "kl_coefficient": coefficient, "value": float((values * mask).sum() / max(mask.sum(), 1))}
    return experience, metrics | {"explained_variance": explained_variance(values, returns, mask)}

  def minibatch(self, rows: Batch) -> Batch:
    return rows | {"advantages": whiten(rows["advantages"], rows["weights"])}

  def counts(self, batch: Batch) -> dict[str, jax.Array]:
    return dict.fromkeys(self.terms, jnp.sum(batch["weights"]))

  def loss(
    self, params: Tree, frozen: Mapping[str, FrozenModel], carry: Tree, batch: Batch, *, rng: jax.Array | None = None
  ) -> tuple[dict[str, Mean], Tree]:
    x, log_probs, _ = self.policy(params, batch, rng)
    log_ratio, advantages = log_probs - batch["old_log_probs"], batch["advantages"]
    policy, clipped = clipped_loss(log_ratio, advantages, self.clip, self.clip)
    values, old, returns = self.head("value", params, x), batch["old_values"], batch["returns"]
    near = old + jnp.clip(values - old, -self.value_clip, self.value_clip)
    error, near_error = (values - returns) ** 2, (near - returns) ** 2
    per_token = {
      "policy": policy,
      "value": jnp.maximum(error, near_error) / 2,
      "clip_fraction": clipped,
      "value_clip_fraction": (near_error > error).astype(jnp.float32),
      "policy_kl": kl_estimate(-log_ratio, "k3"),
    }
    count = jnp.sum(batch["weights"])
    means = {name: Mean(jnp.sum(batch["weights"] * values), count) for name, values in per_token.items()}
    carry = self.next_carry(carry, batch)
    if self.target_kl:
      carry = carry | {"kl": carry["kl"] * jnp.exp(jnp.sum(batch["kl_growth"]))}
    return means, carry
