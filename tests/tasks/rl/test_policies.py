"""Policies that learn from their own answers: rollouts, what is collected, and losses in plain numpy."""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lmjax.decode.sample import prefill
from lmjax.tasks.base import FrozenModel, weighted_sum
from lmjax.tasks.rl.grpo import GRPO
from lmjax.tasks.rl.ppo import PPO
from lmjax.tasks.rl.rewards import FunctionReward, PatternReward
from lmjax.tasks.rl.rollout import Rollout
from lmjax.testing import fake_batch, init_params
from lmjax.train import accumulate
from lmjax.utils.errors import UserError
from tests.families import tiny_task
from tests.tasks.rl.policies import LENGTH, noisy, policy_of, prompts_of, reader_of, vowels

ROWS = 4


@functools.cache
def made(kind=PPO, family="GPT", **changes):
  """Returns a policy, its parameters, prompts, and the rollout of one call."""
  reader, tokenizer = reader_of()
  size = {} if family == "LSTM" else {"depth": 2}
  model = tiny_task(family, vocabulary=tokenizer.size, length=reader.length, **size).model
  task = policy_of(reader, tokenizer, kind, model, **changes)
  params = noisy(init_params(task, fake_batch(task, ROWS, reader.length)))
  prompts = prompts_of(reader, tokenizer, ROWS)
  return task, params, prompts, task.rollout(params, prompts, jax.random.key(3))


def collected(task, params, prompts, carry=None, seed=3):
  batch = {key: jnp.asarray(value) for key, value in prompts.items()}
  return list(
    task.collect(params, {}, task.initial_carry(ROWS) if carry is None else carry, batch, jax.random.key(seed))
  )


@pytest.mark.parametrize("family", ["GPT", "Llama", "LSTM", "T5"])
def test_log_probabilities_are_those_of_the_sampler(family):
  """Of the prefill and the cache, token by token, for prompts of several lengths; and of a row without padding.

  A source may have its padding on either side. The policy and a reference that is the same have equal bits.
  """
  task, params, prompts, rollout = made(family=family, temperature=0.7)
  batch = {key: jnp.asarray(value) for key, value in rollout.rows().items()}
  _, log_probs, entropy = jax.jit(task.policy)(params, batch)
  model, own = task.model, params["model"]
  tokens, valid = jnp.asarray(rollout.prompts), jnp.asarray(rollout.valid)
  source = None
  if family == "T5":
    source, tokens = (tokens, valid), jnp.full((ROWS, 1), task.text.start)
    valid = jnp.ones_like(tokens, bool)
  hidden, cache = jax.jit(lambda p, t, v, s: prefill(model, p, t, v, t.shape[1] + 8, s))(own, tokens, valid, source)
  extend = jax.jit(lambda p, c, t, v: model.apply({"params": p}, c, t, v, method="extend"))
  x = hidden[:, -1:]
  for t in range(task.answer_tokens):
    logits = model.apply({"params": own}, x[:, -1], method="logits").astype(jnp.float32) / task.temperature
    wanted = jax.nn.log_softmax(logits)
    alive = rollout.answers[:, t] >= 0
    drawn = np.maximum(rollout.answers[:, t], 0)
    np.testing.assert_allclose(
      np.asarray(log_probs)[alive, t], np.asarray(wanted)[np.arange(ROWS), drawn][alive], atol=1e-5
    )
    p = np.exp(np.asarray(wanted, np.float64))
    np.testing.assert_allclose(np.asarray(entropy)[alive, t], -(p * np.log(p)).sum(-1)[alive], rtol=1e-4)
    x, cache = extend(own, cache, jnp.asarray(drawn)[:, None], jnp.asarray(alive)[:, None])
  assert not np.asarray(log_probs)[rollout.mask == 0].any()
  row = {key: value[1:2] for key, value in batch.items()}
  start = int(np.argmax(np.asarray(row["segments"])[0] > 0))
  short = row | {key: row[key][:, start:] for key in ("inputs", "positions", "segments")}
  np.testing.assert_allclose(task.policy(params, short)[1][0], log_probs[1], atol=1e-5)
  if source:
    right = row | {key: jnp.roll(row[key], -start, axis=1) for key in ("inputs", "positions", "segments")}
    np.testing.assert_allclose(task.policy(params, right)[1][0], log_probs[1], atol=1e-5)
  saved = dataclasses.replace(tiny_task(family), model=model)  # as a run of another task was saved
  frozen = {"reference": FrozenModel(saved, params)}
  measured = dataclasses.replace(task, reference="somewhere").measure(params, frozen, batch)
  np.testing.assert_array_equal(measured["reference_log_probs"], measured["old_log_probs"])


def test_an_answer_ends_with_the_first_end_token():
  task, _, prompts, rollout = made()
  ends = task.text.ends
  assert len(ends) == 2, "the end of a turn, and that of a document"
  rollout = Rollout(rollout.prompts[:2], rollout.valid[:2], np.array([[3, ends[1], -1], [3, 4, 5]], np.int32))
  assert rollout.finished(ends).tolist() == [True, False] and rollout.mask.tolist() == [[1, 1, 0], [1, 1, 1]]
  rows = rollout.rows()
  size = prompts["inputs"].shape[1]
  assert rows["segments"][0].sum() == prompts["weights"][0].sum() + 2
  assert rows["positions"][0, size] == prompts["weights"][0].sum()


def test_answers_to_a_prompt_follow_each_other_and_differ():
  task, params, prompts, _ = made()
  rollout = task.rollout(params, prompts, jax.random.key(0), 3)
  assert np.array_equal(rollout.prompts[:3], np.repeat(prompts["inputs"][:1], 3, axis=0))
  assert len({row.tobytes() for row in rollout.answers[:3]}) == 3
  again = task.rollout(params, prompts, jax.random.key(0), 3)
  np.testing.assert_array_equal(rollout.answers, again.answers)


@pytest.mark.parametrize(("kind", "family"), [(PPO, "GPT"), (GRPO, "GPT"), (PPO, "T5")])
def test_the_first_update_has_a_ratio_of_1(kind, family):
  """And the batches have the keys and shapes of the spec, every row once in each epoch."""
  task, params, prompts, _ = made(kind, family, samples=2, minibatches=2, epochs=2)
  parts = collected(task, params, prompts)
  assert len(parts) == 4
  spec = task.spec(ROWS, LENGTH)
  for part, _ in parts:
    assert list(part) == list(spec)
    assert all(part[key].shape == leaf.shape and part[key].dtype == leaf.dtype for key, leaf in spec.items())
  for epoch in (parts[:2], parts[2:]):
    rows = np.concatenate([np.asarray(part["inputs"]) for part, _ in epoch])
    assert sorted(row.tobytes() for row in rows) == sorted(
      row.tobytes() for row in np.concatenate([np.asarray(part["inputs"]) for part, _ in parts[:2]])
    )
  terms, _ = jax.jit(lambda p, b: task.loss(p, {}, task.initial_carry(ROWS), b))(params, parts[0][0])
  assert terms["clip_fraction"].value() == 0 and abs(terms["policy_kl"].value()) < 1e-10
  if kind is PPO:  # the mean of -A ratio, and A is whitened
    assert terms["policy"].value() == pytest.approx(0, abs=1e-5)


@functools.cache
def measured(kind):
  """Returns a policy with two answers a prompt, their rollout, and what is measured of it."""
  task, params, prompts, _ = made(kind, samples=2)
  rollout = task.rollout(params, prompts, jax.random.key(3))
  batch = {key: jnp.asarray(value) for key, value in rollout.rows().items()}
  return task, params, rollout, jax.device_get(jax.jit(task.measure)(params, {}, batch))


def moved(kind, **changes):
  """Returns a policy, a batch of what it wrote, and parameters that have moved away from those that wrote it."""
  task, params, rollout, own = measured(kind)
  task = dataclasses.replace(task, **changes)
  scores = task.score({}, rollout, ROWS)[0]
  batch = task.minibatch(rollout.rows() | task.experience(task.initial_carry(ROWS), rollout, own, scores)[0])
  batch = {key: jnp.asarray(batch[key], leaf.dtype) for key, leaf in task.spec(ROWS, LENGTH).items()}
  return task, batch, noisy(params, 5, 0.02)


def test_the_loss_of_ppo_in_numpy():
  task, part, params = moved(PPO, clip=0.1, value_clip=0.05, value_coefficient=0.3)
  x, log_probs, _ = jax.jit(task.policy)(params, part)
  own = {key: np.asarray(value, np.float64) for key, value in part.items()}
  values = np.asarray(task.head("value", params, x), np.float64)
  policy, value, clipped, count = 0.0, 0.0, 0, 0
  for i, t in np.argwhere(own["weights"] > 0):
    ratio = math.exp(float(log_probs[i, t]) - own["old_log_probs"][i, t])
    a, old, target = (own[key][i, t] for key in ("advantages", "old_values", "returns"))
    near = -a * min(max(ratio, 0.9), 1.1)
    policy, clipped = policy + max(-a * ratio, near), clipped + (near > -a * ratio)
    v = values[i, t]
    value += max((v - target) ** 2, (old + min(max(v - old, -0.05), 0.05) - target) ** 2) / 2
    count += 1
  terms = jax.jit(lambda params, part: task.loss(params, {}, {}, part)[0])(params, part)
  assert terms["policy"].value() == pytest.approx(policy / count, rel=1e-4)
  assert terms["value"].value() == pytest.approx(value / count, rel=1e-4)
  assert terms["clip_fraction"].value() == pytest.approx(clipped / count) and clipped
  assert float(weighted_sum(task, terms, task.counts(part))) == pytest.approx(
    policy / count + 0.3 * value / count, rel=1e-4
  )
  white = own["advantages"][own["weights"] > 0]
  assert white.mean() == pytest.approx(0, abs=1e-5) and white.std() == pytest.approx(1, abs=1e-3)


@functools.partial(jax.jit, static_argnums=0)
def log_probs_of(task, params, part):
  rows = {key: part[key] for key in ("inputs", "positions", "segments", "targets", "weights")}
  return task.policy(params, rows)[1]


VARIANTS = [
  dict(),
  dict(average="token", clip_high=0.28),
  dict(average="constant", scale=False),
  dict(level="sequence", clip=3e-4, clip_high=4e-4),
  dict(baseline="leave_one_out", scale=False, average="constant", kl=0.05, kl_in="reward"),
]


@pytest.mark.parametrize("changes", VARIANTS, ids=["grpo", "dapo", "dr_grpo", "gspo", "rloo"])
def test_the_loss_of_grpo_in_numpy(changes):
  task, part, params = moved(GRPO, **changes)
  log_probs = log_probs_of(measured(GRPO)[0], params, part)
  own = {key: np.asarray(value, np.float64) for key, value in part.items()}
  answers = []
  for i, weights in enumerate(own["weights"]):
    log_ratio = (np.asarray(log_probs[i], np.float64) - own["old_log_probs"][i])[weights > 0]
    if task.level == "sequence":
      log_ratio = np.full_like(log_ratio, log_ratio.mean())
    ratio, a = np.exp(log_ratio), own["advantages"][i][weights > 0]
    high = task.clip_high or task.clip
    answers.append(np.maximum(-a * ratio, -a * np.clip(ratio, 1 - task.clip, 1 + high)))
  wanted = {
    "answer": np.mean([a.mean() for a in answers]),
    "token": np.concatenate(answers).mean(),
    "constant": np.mean([a.sum() / task.answer_tokens for a in answers]),
  }[task.average]
  loss = jax.jit(lambda params, part: task.loss(params, {}, {}, part)[0]["policy"])(params, part)
  assert loss.value() == pytest.approx(wanted, rel=1e-3, abs=1e-6)


@pytest.mark.parametrize(
  ("kind", "changes"),
  [(PPO, {"target_kl": 1.0}), (GRPO, {"kl": 0.1})],
)
def test_microbatches_add_up(kind, changes):
  task, part, params = moved(kind, **changes)
  carry = task.initial_carry(ROWS)

  def loss(params, carry, batch, rng):
    terms, carry = task.loss(params, {}, carry, batch)
    return weighted_sum(task, terms, task.counts(part)), (terms, carry)

  results = [jax.jit(accumulate(loss, n))(params, carry, part, jax.random.key(0)) for n in (1, 2)]
  (one, terms, carry_1), (two, more, carry_2) = results
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), one, two)
  assert all(terms[key].value() == pytest.approx(more[key].value(), abs=1e-5) for key in terms)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), carry_1, carry_2)


def test_the_kl_coefficient_adapts():
  """After all updates of a rollout it is that of the paper, whatever the minibatches and epochs."""
  for kl, error in ((0.0, -0.2), (2.2, 0.1), (9.0, 0.2)):
    task, _, rollout, own = measured(PPO)
    task = dataclasses.replace(task, target_kl=2.0, kl=0.1, kl_horizon=100, epochs=3)
    sizes = rollout.mask.sum(axis=1, keepdims=True)
    own = own | {"reference_log_probs": own["old_log_probs"] - kl / sizes * rollout.mask}
    experience, metrics = task.experience(task.initial_carry(ROWS), rollout, own, np.zeros(8, np.float32))
    assert metrics["kl"] == pytest.approx(kl, abs=1e-4)
    assert 0.1 * math.exp(3 * experience["kl_growth"].sum()) == pytest.approx(0.1 * (1 + error * 8 / 100), rel=1e-4)
  _, part, params = moved(PPO, target_kl=2.0, kl=0.1)
  task = dataclasses.replace(measured(PPO)[0], target_kl=2.0, kl=0.1)
  carry = task.loss(params, {}, {"kl": jnp.float32(0.5)}, part | {"kl_growth": jnp.full(8, 0.01)})[1]
  assert float(carry["kl"]) == pytest.approx(0.5 * math.exp(0.08), rel=1e-5)
  metrics = task.experience({"kl": np.float32(0.3)}, rollout, own, np.zeros(8, np.float32))[1]
  assert metrics["kl_coefficient"] == pytest.approx(0.3)


@pytest.mark.parametrize("estimator", ["k1", "k2", "k3"])
def test_kl_is_part_of_the_reward_of_each_token(estimator):
  task, _, rollout, own = measured(PPO)
  task = dataclasses.replace(task, kl=0.5, kl_estimator=estimator, decay=1.0, unfinished=-2.0)
  own = own | {"reference_log_probs": own["old_log_probs"] - 0.3 * rollout.mask}
  scores = task.final_scores(task.score({}, rollout, ROWS)[0], rollout)
  experience, metrics = task.experience({}, rollout, own, scores)
  kl = {"k1": 0.3, "k2": 0.045, "k3": math.exp(-0.3) - 1 + 0.3}[estimator]
  for i, size in enumerate(rollout.mask.sum(axis=1).astype(int)):
    answer = rollout.answers[i, :size]
    score = vowels("", task.text.decode(answer)) if np.isin(answer, task.text.ends).any() else -2
    for t in range(size):
      assert experience["returns"][i, t] == pytest.approx(score - 0.5 * kl * (size - t), abs=1e-4)
  assert metrics["kl"] == pytest.approx(0.3 * rollout.mask.sum(axis=1).mean(), rel=1e-4)


def test_rewards_are_added_with_their_weights():
  task, params, prompts, rollout = made()
  both = dataclasses.replace(
    task, rewards=(FunctionReward(function=vowels, weight=2.0, name="vowels"), PatternReward(pattern="[a-m]"))
  )
  scores, parts = both.score({}, rollout, 2)
  texts = [answer for _, answer in task.texts(rollout)]
  first, second = [vowels("", t) for t in texts], [sum("a" <= c <= "m" for c in t) / max(len(t), 1) for t in texts]
  np.testing.assert_allclose(scores, 2 * np.array(first) + np.array(second), rtol=1e-5)
  assert parts == {"reward_vowels": pytest.approx(np.mean(first)), "reward_1": pytest.approx(np.mean(second))}


def test_rewards_are_normalised_by_the_first_rollout():
  """Its mean becomes 0 and its deviation 1; the next rollout has the same constants, and so has a run that resumes."""
  task, params, prompts, rollout = made(normalise=True, unfinished=-3.0, decay=1.0)
  raw = task.score({}, rollout, ROWS)[0]
  (part, metrics), *_ = collected(task, params, prompts)
  mean, deviation = (np.asarray(part[key]) for key in ("reward_mean", "reward_deviation"))
  carry = task.loss(params, {}, task.initial_carry(ROWS), part)[1]
  assert mean.tolist() == [float(carry["reward_mean"])] * ROWS and float(carry["reward_deviation"]) == deviation[0] > 0
  white = task.final_scores(raw, rollout, mean[0], deviation[0])
  ended = rollout.finished(task.text.ends)
  np.testing.assert_allclose(white[ended], ((raw - mean[0]) / deviation[0])[ended], rtol=1e-5)
  assert (white[~ended] == -3).all()
  (again, later), *_ = collected(task, params, prompts, carry, seed=4)
  np.testing.assert_array_equal(again["reward_mean"], mean)
  assert metrics["reward"] == pytest.approx(float(mean[0]), abs=1e-6) != later["reward"]


def test_groups_and_answers_that_are_left_out():
  """Groups of equal rewards with skip_equal, answers without an end with mask, and long answers are penalised."""
  task, _, _, rollout = made(GRPO, samples=2)
  answers = np.full((4, 8), 5, np.int32)
  answers[0, 3:] = [task.text.ends[0], -1, -1, -1, -1]
  rollout = Rollout(rollout.prompts[:4], rollout.valid[:4], answers)
  measured = {"old_log_probs": np.zeros((4, 8), np.float32)}
  scores = np.array([1, 0, 0.5, 0.5], np.float32)

  def weights(**changes):
    return dataclasses.replace(task, **changes).experience({}, rollout, measured, scores)[0]["weights"].sum(axis=1)

  assert weights().tolist() == [4, 8, 8, 8]
  assert weights(skip_equal=True).tolist() == [4, 8, 0, 0]
  assert weights(overlong="mask").tolist() == [4, 0, 0, 0]
  changed = dataclasses.replace(task, overlong_tokens=4, scale=False, baseline="none")
  experience, metrics = changed.experience({}, rollout, measured, scores)
  assert experience["advantages"][:, 0].tolist() == [1, -1, -0.5, -0.5] and metrics["varied"] == 0.5


def test_mistakes_are_named():
  reader, tokenizer = reader_of()
  for changes, message in (
    ({"rewards": ()}, "name at least one"),
    ({"kl_estimator": "k4"}, "k1, k2, k3"),
    ({"temperature": 0.0}, "temperature"),
    ({"target_kl": 1.0, "kl": 0.0}, "target_kl"),
  ):
    with pytest.raises(ValueError, match=message):
      policy_of(reader, tokenizer, **changes)
  with pytest.raises(ValueError, match="baseline is one of group, leave_one_out, none"):
    policy_of(reader, tokenizer, GRPO, baseline="mean")
  with pytest.raises(ValueError, match="two answers"):
    policy_of(reader, tokenizer, GRPO, samples=1)
  task, params, prompts, _ = made(minibatches=3)
  with pytest.raises(UserError, match="3 do not divide 4 answers"):
    collected(task, params, prompts)
  task = dataclasses.replace(task, rewards=(FunctionReward(function=lambda prompt, answer: math.nan),))
  with pytest.raises(UserError, match="4 scores of part 0 are not finite"):
    task.score({}, made()[3], 2)
