"""Policies that compare several answers to the same prompt, without a value function: GRPO and its relatives."""

import dataclasses
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np

from lmjax.data.batch import Batch
from lmjax.tasks.base import FrozenModel
from lmjax.tasks.rl.advantages import BASELINES, ESTIMATORS, group_advantages, kl_estimate
from lmjax.tasks.rl.losses import AVERAGES, averaged, clipped_loss
from lmjax.tasks.rl.policy import Arrays, Policy, reference_of
from lmjax.tasks.rl.rollout import Rollout
from lmjax.utils.metrics import Mean
from lmjax.utils.pytree import Tree

CHOICES = {"kl_in": ("loss", "reward"), "level": ("token", "sequence"), "overlong": ("keep", "mask")}


@dataclasses.dataclass(frozen=True)
class GRPO(Policy):
  """Raises the probability of answers that got more reward than others to the same prompt.

    A = reward - baseline of the group, divided by the group's standard deviation with `scale`
    policy = average of max(-A ratio, -A clip(ratio, 1 - clip, 1 + clip_high)) + kl x KL(p || p_reference)

  | | baseline | scale | average | level | clip | besides |
  |---|---|---|---|---|---|---|
  | GRPO (Shao et al., 2024, arXiv:2402.03300) | group | yes | answer | token | 0.2 | kl 0.04 in the loss |
  | RLOO (Ahmadian et al., 2024, arXiv:2402.14740) | leave_one_out | no | constant | token | 0.2 | kl in the reward |
  | Dr. GRPO (Liu et al., 2025, arXiv:2503.20783) | group | no | constant | token | 0.2 | |
  | DAPO (Yu et al., 2025, arXiv:2503.14476) | group | yes | token | token | 0.2, 0.28 | skip_equal, overlong_tokens |
  | GSPO (Zheng et al., 2025, arXiv:2507.18071) | group | yes | answer | sequence | 3e-4, 4e-4 | |

  baseline, scale: see `group_advantages`. average: see `averaged`. level: the ratio of a token, or for all tokens of
  an answer the geometric mean of their ratios. clip_high: 0 is `clip`. kl_in: KL of each token in the loss, or of the
  whole answer in its reward. skip_equal: groups whose answers got the same reward are left out of the mean. overlong:
  `mask` leaves out answers without an end token. overlong_tokens: over these last of the tokens that an answer may
  have, its reward falls by up to 1 (equation 13 of DAPO).

  Metrics: kl, of a whole answer to the reference; varied, the fraction of groups whose rewards differ; clip_fraction,
  policy_kl, see `PPO`.
  """

  samples: int = 8
  baseline: str = "group"
  scale: bool = True
  average: str = "answer"
  level: str = "token"
  clip: float = 0.2
  clip_high: float = 0.0
  kl: float = 0.0
  kl_in: str = "loss"
  kl_estimator: str = "k3"
  skip_equal: bool = False
  overlong: str = "keep"
  overlong_tokens: int = 0

  def __post_init__(self):
    super().__post_init__()
    for name, known in {"baseline": BASELINES, "average": AVERAGES, "kl_estimator": ESTIMATORS, **CHOICES}.items():
      if getattr(self, name) not in known:
        raise ValueError(f"{name} is one of {', '.join(known)}, not {getattr(self, name)!r}")
    if self.samples < 2 and (self.baseline != "none" or self.scale):
      raise ValueError("samples: a group has two answers at least")
    if not 0 < self.clip < 1 or self.clip_high < 0 or self.kl < 0:
      raise ValueError("clip is above 0 and below 1; clip_high and kl are at least 0")
    if not 0 <= self.overlong_tokens <= self.answer_tokens:
      raise ValueError(f"overlong_tokens is from 0 to the {self.answer_tokens} tokens of an answer")

  @property
  def _kl_in_loss(self) -> bool:
    return self.kl > 0 and self.kl_in == "loss"

  @property
  def terms(self) -> dict[str, float]:  # type: ignore[override]  # here they depend on a field
    return {"policy": 1.0} | ({"token_kl": self.kl} if self._kl_in_loss else {})

  def experience_keys(self) -> tuple[str, ...]:
    return ("old_log_probs", "advantages", *(["reference_log_probs"] if self._kl_in_loss else []))

  def experience(
    self, carry: Tree, rollout: Rollout, measured: Arrays, scores: np.ndarray
  ) -> tuple[Arrays, dict[str, float]]:
    assert self.text is not None
    mask, reference = rollout.mask, reference_of(measured)
    log_ratio = (measured["old_log_probs"] - reference) * mask
    sizes = mask.sum(axis=1)
    if self.overlong_tokens:
      allowed = self.answer_tokens - self.overlong_tokens
      scores = scores + np.clip((allowed - sizes) / self.overlong_tokens, -1, 0)
    if self.kl_in == "reward":
      scores = scores - self.kl * log_ratio.sum(axis=1)
    groups = scores.reshape(-1, self.samples)
    varied = np.ptp(groups, axis=1) > 1e-6
    kept = np.repeat(varied, self.samples) if self.skip_equal else np.ones(len(mask), bool)
    if self.overlong == "mask":
      kept = kept & rollout.finished(self.text.ends)
    advantages = group_advantages(scores, self.samples, self.baseline, self.scale)
    experience = {
      "old_log_probs": measured["old_log_probs"],
      "advantages": (advantages[:, None] * mask).astype(np.float32),
      "reference_log_probs": reference,
      "weights": mask * kept[:, None],
    }
    metrics = {"kl": float(log_ratio.sum(axis=1).mean()), "varied": float(varied.mean()), "kept": float(kept.mean())}
    return experience, metrics

  def counts(self, batch: Batch) -> dict[str, jax.Array]:
    return dict.fromkeys(self.terms, averaged(batch["weights"], self.average)[1])

  def loss(
    self, params: Tree, frozen: Mapping[str, FrozenModel], carry: Tree, batch: Batch, *, rng: jax.Array | None = None
  ) -> tuple[dict[str, Mean], Tree]:
    _, log_probs, _ = self.policy(params, batch, rng)
    log_ratio = log_probs - batch["old_log_probs"]
    policy_kl = kl_estimate(-log_ratio, "k3")
    if self.level == "sequence":
      weights = batch["weights"]
      sizes = jnp.maximum(jnp.sum(weights, axis=1, keepdims=True), 1)
      log_ratio = jnp.broadcast_to(jnp.sum(weights * log_ratio, axis=1, keepdims=True) / sizes, weights.shape)
    policy, clipped = clipped_loss(log_ratio, batch["advantages"], self.clip, self.clip_high or self.clip)
    per_token = {"policy": policy, "clip_fraction": clipped, "policy_kl": policy_kl}
    if self._kl_in_loss:
      per_token["token_kl"] = kl_estimate(log_probs - batch["reference_log_probs"], self.kl_estimator)
    weights, count = averaged(batch["weights"], self.average)
    means = {name: Mean(jnp.sum(weights * values), count) for name, values in per_token.items()}
    return means, self.next_carry(carry, batch)
