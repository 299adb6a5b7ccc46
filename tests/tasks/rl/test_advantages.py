"""Advantages and the losses of policies, against plain loops written from the papers."""

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lmjax.tasks.rl import advantages
from lmjax.tasks.rl.losses import AVERAGES, averaged, clipped_loss

RNG = np.random.default_rng(0)
SIZES = (5, 1, 3, 4, 0, 2)
MASK = (np.arange(5) < np.array(SIZES)[:, None]).astype(np.float32)


def numbers(*shape):
  return RNG.standard_normal(shape).astype(np.float32)


@pytest.mark.parametrize(("discount", "decay"), [(1.0, 0.95), (0.9, 1.0), (0.8, 0.0), (1.0, 1.0)])
def test_generalised_advantages_are_sums_of_discounted_errors(discount, decay):
  """Equation 16 of the paper as a sum over the future; with decay 1 they are returns less the value."""
  rewards, values = numbers(6, 5), numbers(6, 5)
  got, returns = advantages.gae(rewards, values, MASK, discount, decay)
  for row, size in enumerate(SIZES):
    v = [*values[row, :size], 0.0]
    delta = [rewards[row, t] + discount * v[t + 1] - v[t] for t in range(size)]
    for t in range(5):
      wanted = sum((discount * decay) ** (k - t) * delta[k] for k in range(t, size)) if t < size else 0
      assert got[row, t] == pytest.approx(wanted, abs=1e-5)
      if decay == 1 and t < size:
        future = sum(discount ** (k - t) * rewards[row, k] for k in range(t, size))
        assert returns[row, t] == pytest.approx(future, abs=1e-5)
  assert not returns[MASK == 0].any()


@pytest.mark.parametrize("shift", [True, False])
def test_whitened_values_have_a_variance_of_1_over_the_mask(shift):
  values = 3 + 2 * numbers(6, 5)
  white = advantages.whiten(values, MASK, shift)
  own = white[MASK > 0]
  assert own.std() == pytest.approx(1, abs=1e-4)
  assert own.mean() == pytest.approx(0 if shift else values[MASK > 0].mean(), abs=1e-4)
  assert not white[MASK == 0].any()
  other = advantages.whiten(np.where(MASK > 0, values, 99), MASK, shift)
  np.testing.assert_array_equal(white, other)


def test_estimates_of_kl():
  """Their expectation under p, by enumeration: k1 and k3 give KL(p || q); k2 and k3 are never negative."""
  p, q = (np.exp(x) / np.exp(x).sum() for x in (numbers(7), numbers(7)))
  ratio = np.log(p / q)
  kl = float((p * ratio).sum())
  for name in ("k1", "k3"):
    assert (p * advantages.kl_estimate(ratio, name)).sum() == pytest.approx(kl, rel=1e-5)
  for name in ("k2", "k3"):
    assert (advantages.kl_estimate(ratio, name) >= 0).all()
  for name in advantages.ESTIMATORS:
    assert advantages.kl_estimate(np.zeros(2), name).tolist() == [0, 0]
    on_device = jax.jit(lambda x, name=name: advantages.kl_estimate(x, name))(ratio)
    np.testing.assert_allclose(on_device, advantages.kl_estimate(ratio, name), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("baseline", "scale"), list(itertools.product(advantages.BASELINES, (False, True))))
def test_advantages_of_groups(baseline, scale):
  scores = numbers(12)
  got = advantages.group_advantages(scores, 4, baseline, scale)
  for i, score in enumerate(scores):
    group = scores[i // 4 * 4 : i // 4 * 4 + 4]
    others = [s for j, s in enumerate(group) if j != i % 4]
    wanted = score - {"group": np.mean(group), "leave_one_out": np.mean(others), "none": 0}[baseline]
    assert got[i] == pytest.approx(wanted / (np.std(group) + 1e-4 if scale else 1), abs=1e-5)


def test_a_group_of_equal_rewards_teaches_nothing():
  for baseline in ("group", "leave_one_out"):
    assert not advantages.group_advantages(np.full(4, 0.7, np.float32), 4, baseline, True).round(3).any()
  with pytest.raises(ValueError, match="two answers"):
    advantages.group_advantages(np.ones(4, np.float32), 1, "group", False)


def test_explained_variance():
  returns = numbers(6, 5)
  assert advantages.explained_variance(returns, returns, MASK) == 1
  assert advantages.explained_variance(np.full((6, 5), 2.0), returns, MASK) == pytest.approx(0, abs=1e-6)
  assert advantages.explained_variance(-returns, returns, MASK) < 0


def test_the_last_token_of_an_answer():
  last = advantages.last_tokens(MASK)
  assert last.sum(axis=1).tolist() == [1, 1, 1, 1, 0, 1] and last.argmax(axis=1).tolist() == [4, 0, 2, 3, 0, 1]


LOW, HIGH = 0.2, 0.3


@pytest.mark.parametrize("advantage", [1.5, -0.7])
@pytest.mark.parametrize("ratio", [0.5, 0.85, 1.0, 1.25, 1.7])
def test_the_clipped_loss_and_its_gradient(ratio, advantage):
  """By finite differences; it is 0 where the ratio has gone further than the clip, on the side of the advantage."""

  def loss(log_ratio):
    return clipped_loss(jnp.full((1, 1), log_ratio), jnp.full((1, 1), advantage), LOW, HIGH)[0][0, 0]

  def in_numpy(log_ratio):
    r = math.exp(log_ratio)
    return max(-advantage * r, -advantage * min(max(r, 1 - LOW), 1 + HIGH))

  at, step = math.log(ratio), 1e-5
  assert float(loss(at)) == pytest.approx(in_numpy(at), rel=1e-5)
  slope = (in_numpy(at + step) - in_numpy(at - step)) / (2 * step)
  assert float(jax.grad(loss)(at)) == pytest.approx(slope, rel=1e-3, abs=1e-4)
  outside = (ratio > 1 + HIGH and advantage > 0) or (ratio < 1 - LOW and advantage < 0)
  clipped = clipped_loss(jnp.full((1, 1), at), jnp.full((1, 1), advantage), LOW, HIGH)[1]
  assert bool(clipped[0, 0]) == outside == (slope == 0)


@pytest.mark.parametrize("average", AVERAGES)
def test_averages_of_tokens(average):
  values, sums = numbers(6, 5), []
  weights, count = averaged(jnp.asarray(MASK), average)
  got = float((weights * values).sum() / count)
  for row, size in enumerate(SIZES):
    sums.append(values[row, :size].sum())
  per_answer = [s / n for s, n in zip(sums, SIZES, strict=True) if n]
  wanted = {"answer": np.mean(per_answer), "token": sum(sums) / sum(SIZES), "constant": sum(sums) / 5 / 5}[average]
  assert got == pytest.approx(float(wanted), rel=1e-5)
