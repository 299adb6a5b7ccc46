"""Losses of alignment equal those of TRL on the same log-probabilities, rewards and advantages.

Its loss functions are methods of trainers, which are called here without making a trainer.
"""

import dataclasses
import importlib
import itertools
import os
import types
from unittest import mock

import jax.numpy as jnp
import numpy as np
import pytest

from lmjax.tasks.base import FrozenModel, Outputs, weighted_sum
from lmjax.tasks.dpo import DPO
from lmjax.tasks.kto import KTO
from lmjax.tasks.orpo import ORPO
from lmjax.tasks.reward import RewardModel
from lmjax.tasks.rl.advantages import whiten
from lmjax.tasks.rl.grpo import GRPO
from lmjax.tasks.rl.rewards import PatternReward
from lmjax.testing import tiny_decoder

torch = pytest.importorskip("torch")
os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")
import_utils = pytest.importorskip("trl.import_utils")
# TRL takes every package for installed that it asks transformers 5 for.
with mock.patch.object(import_utils, "is_weave_available", lambda: False):
  importlib.import_module("trl.trainer.callbacks")
pytestmark = [pytest.mark.torch, pytest.mark.filterwarnings("ignore")]
GROUPS, ANSWERS, ROWS, LENGTH = 3, 2, 4, 40


def given(kind):
  """Returns a kind of task for which the log-probability of each target, or the reward, is the parameter."""

  class Given(kind):
    def log_probs(self, params, batch, *, rng=None):
      return params

    def forward(self, params, batch, *, rng=None, taps=()):
      return Outputs(params, params, {})

    def policy(self, params, batch, rng=None):
      return params, params, params

  return dataclasses.dataclass(frozen=True)(Given)


def rows(seed=0):
  """Returns a batch of two answers a group, each with two weights at least, and random log-probabilities."""
  rng = np.random.default_rng(seed)
  segments, weights = np.zeros((ROWS, LENGTH), np.int32), np.zeros((ROWS, LENGTH), np.float32)
  for row in range(ROWS):
    ends = np.cumsum(rng.integers(4, 7, GROUPS * ANSWERS))
    for number, (start, end) in enumerate(itertools.pairwise([0, *ends]), 1):
      segments[row, start:end], weights[row, start + rng.integers(1, 3) : end] = number, 1
  values = [-rng.exponential(size=segments.shape).astype(np.float32) for _ in range(2)]
  return {"segments": jnp.asarray(segments), "weights": jnp.asarray(weights), "targets": jnp.asarray(segments)}, *values


def of_answers(batch, values, mean=False):
  """Returns the sum or the mean of each answer's values, the first and the second ones of all groups, as tensors."""
  own = np.asarray(batch["segments"])[..., None] == np.arange(1, 1 + GROUPS * ANSWERS)
  own = own * np.asarray(batch["weights"], np.float64)[..., None]
  sums = np.einsum("bln,bl->bn", own, values) / (own.sum(axis=1) if mean else 1)
  return torch.tensor(sums.reshape(-1, ANSWERS).T)


def stub(**fields):
  """Returns what stands for the trainer."""
  accelerator = types.SimpleNamespace(device="cpu", gather_for_metrics=lambda x: x, gather=lambda x: x, num_processes=1)
  return types.SimpleNamespace(accelerator=accelerator, **fields)


def loss_of(task, params, batch, frozen=None):
  terms, _ = task.loss(jnp.asarray(params), frozen or {}, {}, batch)
  return float(weighted_sum(task, terms, task.counts(batch)))


@pytest.mark.parametrize(
  "changes",
  [dict(), dict(smoothing=0.2), dict(form="ipo"), dict(reference="none")],
  ids=["dpo", "smooth", "ipo", "free"],
)
def test_dpo(changes):
  from trl.trainer.dpo_trainer import DPOTrainer

  batch, policy, reference = rows()
  task = given(DPO)(tiny_decoder(), groups=GROUPS, beta=0.3, **({"reference": "somewhere"} | changes))
  fields = dict(beta=0.3, label_smoothing=task.smoothing, reference_free=task.reference == "none")
  trainer = stub(f_divergence_type="reverse_kl", f_divergence_params=None, **fields)
  log_probs = (*of_answers(batch, policy), *of_answers(batch, reference))
  wanted, *rewards = DPOTrainer.dpo_loss(trainer, *log_probs, task.form)
  frozen = {"reference": FrozenModel(task, jnp.asarray(reference))}
  assert loss_of(task, policy, batch, frozen) == pytest.approx(float(wanted.mean()), rel=1e-5)
  if task.reference == "none":  # TRL logs rewards over the reference even then
    return
  terms, _ = task.loss(jnp.asarray(policy), frozen, {}, batch)
  for name, own in zip(("chosen_reward", "rejected_reward"), rewards, strict=True):
    assert terms[name].value() == pytest.approx(float(own.mean()), rel=1e-4)


def test_orpo():
  from trl.experimental.orpo.orpo_trainer import ORPOTrainer

  batch, policy, _ = rows()
  task = given(ORPO)(tiny_decoder(), groups=GROUPS, beta=0.3)
  means = of_answers(batch, policy, mean=True)
  losses, *_ = ORPOTrainer.odds_ratio_loss(stub(beta=0.3), *means)
  size = of_answers(batch, np.ones_like(policy))[0].sum()
  nll = -of_answers(batch, policy)[0].sum() / size
  assert loss_of(task, policy, batch) == pytest.approx(float(nll - losses.mean()), rel=1e-5)


@pytest.mark.parametrize("sign", [1, -1])
def test_kto(sign):
  """The second answer of each group is one to another prompt, of which the reference point is made."""
  from trl.experimental.kto.kto_trainer import KTOTrainer

  batch, policy, reference = rows()
  policy = reference + 0.2 * (policy + 1) + sign * 0.3
  good = np.random.default_rng(2).random(ROWS * GROUPS) < 0.5
  tags = np.repeat(good.reshape(ROWS, GROUPS), ANSWERS, axis=1)
  numbers = np.maximum(np.asarray(batch["segments"]) - 1, 0)
  batch |= {"tags": jnp.asarray(np.take_along_axis(tags, numbers, axis=1).astype(np.int32))}
  task = given(KTO)(tiny_decoder(), groups=GROUPS, reference="somewhere", beta=0.3, desirable=1.5, undesirable=0.7)
  own, other = of_answers(batch, policy)
  own_reference, other_reference = of_answers(batch, reference)
  trainer = stub(beta=0.3, calculate_KL=True, loss_type="kto", desirable_weight=1.5, undesirable_weight=0.7)
  losses, *_, kl = KTOTrainer.kto_loss(
    trainer, own[good], own[~good], other, own_reference[good], own_reference[~good], other_reference
  )
  assert (float(kl) > 0) == (sign > 0)
  frozen = {"reference": FrozenModel(task, jnp.asarray(reference))}
  assert loss_of(task, policy, batch, frozen) == pytest.approx(float(losses.mean()), rel=1e-5)


def test_reward_model():
  from trl.trainer.reward_trainer import RewardTrainer

  batch, *_ = rows()
  task = given(RewardModel)(tiny_decoder(), groups=GROUPS)
  rewards = np.random.default_rng(3).standard_normal((ROWS, GROUPS * ANSWERS)).astype(np.float32)
  ranked = torch.tensor(rewards.reshape(-1, ANSWERS).T.reshape(-1, 1))
  trainer = mock.MagicMock()
  trainer.args.center_rewards_coefficient, trainer.model.training = None, False
  wanted = RewardTrainer.compute_loss(trainer, lambda **inputs: types.SimpleNamespace(logits=ranked), {})
  assert loss_of(task, rewards, batch) == pytest.approx(float(wanted), rel=1e-5)


def test_whitening():
  """TRL divides by the unbiased deviation, which is larger by sqrt(n / (n - 1))."""
  from trl.experimental.ppo.ppo_trainer import masked_whiten

  rng = np.random.default_rng(4)
  values, mask = rng.standard_normal((5, 7)), (rng.random((5, 7)) < 0.7).astype(np.float64)
  n = mask.sum()
  for shift in (True, False):
    own, wanted = whiten(values, mask, shift), masked_whiten(torch.tensor(values), torch.tensor(mask), shift).numpy()
    mean = 0 if shift else (values * mask).sum() / n
    np.testing.assert_allclose((own - mean) * mask, (wanted - mean) * mask * np.sqrt(n / (n - 1)), rtol=1e-6)


@pytest.mark.parametrize(
  ("loss_type", "changes"),
  [
    ("grpo", dict(kl=0.04)),
    ("dapo", dict(average="token", clip_high=0.28)),
    ("dr_grpo", dict(average="constant")),
    ("grpo", dict(level="sequence", clip=3e-2, clip_high=4e-2)),
  ],
  ids=["grpo", "dapo", "dr_grpo", "gspo"],
)
def test_grpo(loss_type, changes):
  from trl.trainer.grpo_trainer import GRPOTrainer

  rng = np.random.default_rng(5)
  rewards = (PatternReward(pattern="a"),)
  task = given(GRPO)(tiny_decoder(), reference="none", rewards=rewards, samples=2, answer_tokens=8, **changes)
  old, reference = (-rng.exponential(size=(ROWS, 8)).astype(np.float32) for _ in range(2))
  policy = old + 0.3 * rng.standard_normal(old.shape).astype(np.float32)
  sizes, advantages = np.array([8, 3, 5, 1]), rng.standard_normal(ROWS).astype(np.float32)
  mask = (np.arange(8) < sizes[:, None]).astype(np.float32)
  keys = {"weights": mask, "old_log_probs": old, "reference_log_probs": reference}
  batch = {key: jnp.asarray(value) for key, value in keys.items()} | {"advantages": advantages[:, None] * mask}
  trainer = mock.MagicMock(
    top_entropy_quantile=1.0, off_policy_mask_threshold=None, beta=task.kl, loss_type=loss_type, use_vllm=False,
    importance_sampling_level=task.level, epsilon_low=task.clip, epsilon_high=task.clip_high or task.clip,
    max_completion_length=8,
  )  # fmt: skip
  trainer.args.use_bias_correction_kl, trainer.args.delta, trainer.model.training = False, None, False
  trainer.accelerator.num_processes, trainer.accelerator.gather = 1, lambda x: x
  trainer._get_per_token_logps_and_entropies.return_value = torch.tensor(policy), torch.tensor(policy)
  inputs = {"advantages": advantages, "old_per_token_logps": old, "ref_per_token_logps": reference}
  inputs |= dict.fromkeys(("prompt_ids", "prompt_mask", "completion_ids", "completion_mask"), mask)
  inputs = {key: torch.tensor(value) for key, value in inputs.items()}
  wanted = GRPOTrainer._compute_loss(trainer, None, inputs | {"num_items_in_batch": mask.sum()})
  assert loss_of(task, policy, batch) == pytest.approx(float(wanted), rel=1e-4)
