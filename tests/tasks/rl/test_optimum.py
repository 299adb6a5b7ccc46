"""A task with a known optimum: policies reach it, and the KL term holds them near the reference."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from lmjax.compression.base import Identity
from lmjax.parallel.mesh import MeshShape
from lmjax.parallel.sharding import Layout, use_layout
from lmjax.tasks.base import FrozenModel
from lmjax.tasks.causal_lm import CausalLM
from lmjax.tasks.rl.grpo import GRPO
from lmjax.tasks.rl.ppo import PPO
from lmjax.tasks.rl.rewards import FunctionReward
from lmjax.testing import init_state, tiny_decoder
from lmjax.train import make_step
from tests.tasks.rl.policies import LENGTH, PROMPTS, policy_of, prompts_of, reader_of, vowels

PROMPTS = PROMPTS[:4]
TOKENS = 4  # of an answer
ROLLOUTS = 60
METHODS = {
  "ppo": (PPO, dict(samples=8, minibatches=2, epochs=2, kl=0.01, decay=0.95)),
  "grpo": (GRPO, dict(samples=8, minibatches=2, kl=0.01)),
  "rloo": (GRPO, dict(samples=8, baseline="leave_one_out", scale=False, average="constant", kl=0.01, kl_in="reward")),
}


def long_answers(prompt: str, answer: str) -> float:
  """A reward that can be hacked: the number of characters."""
  return len(answer) / 10


@functools.cache
def setup(name, function=vowels, **changes):
  """Returns a policy, its optimizer and its compiled step."""
  reader, tokenizer = reader_of(PROMPTS, length=48 + TOKENS)
  kind, settings = METHODS[name]
  model = tiny_decoder(vocabulary=tokenizer.size, length=LENGTH, depth=1)
  task = policy_of(
    reader,
    tokenizer,
    kind,
    model,
    reference="start",
    rewards=(FunctionReward(function=function),),
    **settings | changes,
  )
  updates = ROLLOUTS * settings.get("minibatches", 1) * settings.get("epochs", 1)
  rate = optax.linear_schedule(1e-2, 1e-3, updates)  # a constant one leaves the optimum again now and then
  tx = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(rate))
  return task, tx, jax.jit(make_step(task, tx, Identity())), prompts_of(reader, tokenizer, len(PROMPTS))


def learn(name, seed, rollouts=ROLLOUTS, function=vowels, **changes):
  """Trains a policy, and returns the metrics of each rollout."""
  task, tx, step, prompts = setup(name, function, **changes)
  layout, logged = Layout.build(MeshShape().build(jax.devices()[:1]), "ddp"), []
  with use_layout(layout):
    state = init_state(task, tx, Identity(), layout, len(PROMPTS), 48 + TOKENS, seed)
    frozen = {"reference": FrozenModel(CausalLM(task.model), {"model": state.params["model"], "heads": {}})}
    batch = {key: jnp.asarray(value) for key, value in prompts.items()}
    for number in range(rollouts):
      rng = jax.random.fold_in(jax.random.key(seed), number)
      for collected in task.collect(state.params, frozen, state.carry, batch, rng):
        state, _ = step(state, collected.batch, rng)
      logged.append(collected.metrics)  # the same of all updates of a rollout
  return logged


@pytest.mark.slow
@pytest.mark.parametrize("name", METHODS)
def test_policies_reach_the_optimum(name):
  """Answers of vowels alone, which get 1, from a policy that draws all tokens alike; five seeds of five.

  The KL of the policy that draws the best tokens alike is the log of all tokens over those: the bound is that of a
  single best token.
  """
  for seed in range(5):
    logged = learn(name, seed)
    assert logged[0]["reward"] < 0.25 and abs(logged[0]["kl"]) < 1e-4
    last = logged[-5:]
    assert np.mean([line["reward"] for line in last]) > 0.95, (seed, [line["reward"] for line in logged[::5]])
    most = TOKENS * math.log(setup(name)[0].model.config.vocabulary)
    assert max(line["kl"] for line in logged) < most


@pytest.mark.slow
def test_the_kl_term_holds_a_reward_that_can_be_hacked():
  """Without it, the policy writes the longest tokens only; with it, it stays near the reference, at less reward."""
  free, held = (learn("rloo", 0, 40, function=long_answers, kl=kl)[-1] for kl in (0.0, 1.0))
  assert free["reward"] > 1.3 * held["reward"]
  assert held["kl"] < 1 < free["kl"]


def test_policies_get_closer_to_the_optimum():
  """A few rollouts of the same, fast."""
  rewards = [line["reward"] for line in learn("rloo", 0, 12)]
  assert np.mean(rewards[-3:]) > 1.5 * np.mean(rewards[:3])
