"""Proximal policy optimization: step 3 of InstructGPT (Ouyang et al., 2022, arXiv:2203.02155)."""

import dataclasses
from collections.abc import Iterable, Mapping

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from lmjax.data.batch import Batch
from lmjax.models.value import Value
from lmjax.tasks.base import Collected, FrozenModel, Spec
from lmjax.tasks.reward import RewardModel
from lmjax.tasks.rl.advantages import ESTIMATORS, explained_variance, gae, kl_estimate, whiten
from lmjax.tasks.rl.losses import clipped_loss
from lmjax.tasks.rl.policy import Arrays, Policy, at_end, reference_of
from lmjax.tasks.rl.rewards import ModelReward
from lmjax.tasks.rl.rollout import Rollout, on_mesh, whole
from lmjax.utils.errors import UserError
from lmjax.utils.metrics import Mean
from lmjax.utils.pytree import Tree

TEXT = "pretraining_"  # before the keys of a batch's rows of text


@dataclasses.dataclass(frozen=True)
class PPO(Policy):
  """Raises the probability of tokens that led to more reward than a value function expected.

    r_t = -kl x KL_t + (reward of the answer, at its last token)
    A, R = generalised advantages and returns of r and V, A whitened over each minibatch
    ratio = p(token) / p_old(token)
    policy = mean over tokens of max(-A ratio, -A clip(ratio, 1 - clip, 1 + clip))
    value = mean over tokens of max((V - R)^2, (V_old + clip(V - V_old, +-value_clip) - R)^2) / 2

  Schulman et al., 2017, arXiv:1707.06347, equation 7; for language models Ziegler et al., 2019, arXiv:1909.08593.
  KL_t is an estimate of KL(p || p_reference), see `kl_estimate`. V is a head on the policy's vectors, 0 at first, or a
  network of its own.

  kl: its coefficient, at first if target_kl is set, and fixed if that is 0. target_kl: of a whole answer; after each
  rollout of n answers, kl *= 1 + clip(KL / target_kl - 1, +-0.2) n / kl_horizon (Ziegler et al., section 2.2).
  discount, decay: gamma and lambda of the advantages. whiten_rewards: scale r to a variance of 1 first.

  value: `head`, or `reward`: a network that starts as the first reward model, which has the policy's shape. What is
  trained and saved is the difference of its parameters from the reward model's, 0 at first; no head of the policy's.
  pretraining: gamma of PPO-ptx, the coefficient of -log p, the mean over tokens, of a row of text for each prompt (see
  `lmjax.data.objectives.prompts_with_text`), of whose tokens the data sets the number. text_tokens: that number.

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
  value: str = "head"
  pretraining: float = 0.0
  text_tokens: int = 0

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
    if self.value not in ("head", "reward") or (self.value == "reward" and self._judge is None):
      raise ValueError("value is head, or reward where one of the rewards is a ModelReward")
    if bool(self.pretraining) != bool(self.text_tokens) or (self.text_tokens and self.samples > 1):
      raise ValueError("pretraining needs data of prompts_with_text:PromptsWithText, and one sample of a prompt")

  @property
  def terms(self) -> dict[str, float]:  # type: ignore[override]  # here they depend on a field
    terms = {"policy": 1.0, "value": self.value_coefficient}
    return terms | ({"pretraining": self.pretraining} if self.pretraining else {})

  @property
  def _judge(self) -> str | None:
    """The name of the first reward model among the frozen models."""
    return next((f"reward_{i}" for i, own in enumerate(self.rewards) if isinstance(own, ModelReward)), None)

  def heads(self) -> dict[str, nn.Module]:
    return {"value": Value(parent=None)} if self.value == "head" else {}

  def init(self, rng: jax.Array, batch: Batch) -> Tree:
    params = super().init(rng, batch)
    if self.value == "reward":
      params["heads"]["value"] = jax.tree.map(jnp.zeros_like, RewardModel(self.model).init(rng, batch))
    return params

  def values(
    self, params: Tree, frozen: Mapping[str, FrozenModel], x: jax.Array, batch: Batch, rng: jax.Array | None = None
  ) -> jax.Array:
    """Returns V of the tokens of answers [B, T], given the policy's vectors that predict them.

    Raises:
      UserError: the value network starts from a model of another shape.
    """
    if self.value == "head":
      values: jax.Array = self.head("value", params, x)
      return values
    judge, difference = frozen[self._judge or ""], params["heads"]["value"]
    if jax.tree.map(jnp.shape, judge.params) != jax.tree.map(jnp.shape, difference):
      raise UserError("config.task.value: the reward model has another shape than the policy; value=head needs no such")
    own = jax.tree.map(lambda start, change: start.astype(change.dtype) + change, judge.params, difference)
    hidden = judge.task.hidden(own, batch, rng=rng).tokens
    scores: jax.Array = judge.task.head("reward", own, self.answer_vectors(hidden))
    return scores[..., 0]

  def experience_keys(self) -> tuple[str, ...]:
    return ("old_log_probs", "old_values", "advantages", "returns")

  def spec(self, batch: int, length: int) -> Spec:
    spec = super().spec(batch, length)
    growth = {"kl_growth": jax.ShapeDtypeStruct(spec["inputs"].shape[:1], jnp.float32)}
    return spec | (growth if self.target_kl else {}) | self._text_spec(spec["inputs"].shape[0])

  def reads(self, batch: int, length: int) -> Spec:
    return super().reads(batch, length) | self._text_spec(batch)

  def _text_spec(self, rows: int) -> Spec:
    """Returns the shapes and types of rows of text, if any."""
    kinds = dict.fromkeys(("inputs", "targets", "positions", "segments"), jnp.int32) | {"weights": jnp.float32}
    shape = (rows, self.text_tokens)
    return {TEXT + key: jax.ShapeDtypeStruct(shape, kind) for key, kind in kinds.items() if self.pretraining}

  def initial_carry(self, batch: int) -> Tree:
    return super().initial_carry(batch) | ({"kl": jnp.float32(self.kl)} if self.target_kl else {})

  def measure_vectors(
    self, params: Tree, frozen: Mapping[str, FrozenModel], x: jax.Array, batch: Batch
  ) -> dict[str, jax.Array]:
    return {"old_values": self.values(params, frozen, x, batch)}

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
    answers = dict.fromkeys(("policy", "value"), jnp.sum(batch["weights"]))
    return answers | ({"pretraining": jnp.sum(batch[TEXT + "weights"])} if self.pretraining else {})

  def collect(
    self, params: Tree, frozen: Mapping[str, FrozenModel], carry: Tree, batch: Batch, rng: jax.Array
  ) -> Iterable[Collected]:
    """Yields what a policy collects, and in each epoch every row of text once, in its order."""
    text = whole({key: batch[key] for key in batch if key.startswith(TEXT)})
    prompts = {key: value for key, value in batch.items() if key not in text}
    for i, part in enumerate(super().collect(params, frozen, carry, prompts, rng)):
      own = {key: np.split(value, self.minibatches)[i % self.minibatches] for key, value in text.items()}
      yield Collected(part.batch | on_mesh(own), part.metrics) if own else part

  def loss(
    self, params: Tree, frozen: Mapping[str, FrozenModel], carry: Tree, batch: Batch, *, rng: jax.Array | None = None
  ) -> tuple[dict[str, Mean], Tree]:
    x, log_probs, _ = self.policy(params, batch, rng)
    log_ratio, advantages = log_probs - batch["old_log_probs"], batch["advantages"]
    policy, clipped = clipped_loss(log_ratio, advantages, self.clip, self.clip)
    values, old, returns = self.values(params, frozen, x, batch, rng), batch["old_values"], batch["returns"]
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
    if self.pretraining:
      text = {key.removeprefix(TEXT): batch[key] for key in self._text_spec(1)}
      nll = -jnp.sum(text["weights"] * self.log_probs(params, text, rng=rng))
      means["pretraining"] = Mean(nll, jnp.sum(text["weights"]))
    carry = self.next_carry(carry, batch)
    if self.target_kl:
      carry = carry | {"kl": carry["kl"] * jnp.exp(jnp.sum(batch["kl_growth"]))}
    return means, carry
