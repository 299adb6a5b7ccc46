"""Schedules against values computed by hand; Adafactor against optax.adafactor."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from lmjax.optim import Optimizer
from lmjax.optim.schedules import schedule


@pytest.mark.parametrize(
  "name, expected",
  [
    # peak 2, 4 steps of warm-up, 20 steps, final a tenth; steps 0, 1, 3, 4, 12, 20, 30
    ("cosine", [0.5, 1.0, 2.0, 2.0, 2 * (0.1 + 0.9 * 0.5), 0.2, 0.2]),
    ("linear", [0.5, 1.0, 2.0, 2.0, 1.1, 0.2, 0.2]),
    (
      "inverse_sqrt",
      [0.5, 1.0, 2.0, 2.0, 2 * math.sqrt(4 / 12), 2 * math.sqrt(4 / 20), 2 * math.sqrt(4 / 30)],
    ),
    ("warmup_stable_decay", [0.5, 1.0, 2.0, 2.0, 2.0, 0.2, 0.2]),
    ("constant", [0.5, 1.0, 2.0, 2.0, 2.0, 2.0, 2.0]),
  ],
)
def test_values(name, expected):
  learning_rate = schedule(name, peak=2.0, steps=20, warmup=4, final_lr_ratio=0.1, decay=5)
  assert [float(learning_rate(step)) for step in (0, 1, 3, 4, 12, 20, 30)] == pytest.approx(expected, rel=1e-5)


def test_the_final_decay_is_linear():
  learning_rate = schedule("warmup_stable_decay", peak=1.0, steps=20, warmup=0, final_lr_ratio=0.0, decay=5)
  assert [float(learning_rate(step)) for step in (15, 16, 19)] == pytest.approx([1.0, 0.8, 0.2], rel=1e-5)


def test_adafactor_equals_optax():
  """Three steps, with clipping and updates relative to the parameters."""
  params = {"kernel": 0.05 * jax.random.normal(jax.random.key(0), (160, 130)), "scale": jnp.ones(130)}
  chain = Optimizer(optimizer="adafactor", peak_lr=1e-2, schedule="constant", clip=0.0, weight_decay=0.0).build(10)
  reference = optax.adafactor(1e-2)
  actual, expected, states = params, params, [chain.init(params), reference.init(params)]
  for step in range(3):
    grads = jax.tree.map(lambda p, step=step: jax.random.normal(jax.random.key(step + 1), p.shape), params)
    updates, states[0] = chain.update(grads, states[0], actual)
    actual = optax.apply_updates(actual, updates)
    updates, states[1] = reference.update(grads, states[1], expected)
    expected = optax.apply_updates(expected, updates)
  for name in params:
    np.testing.assert_allclose(actual[name], expected[name], rtol=1e-6, atol=1e-8)  # factors in another order
  assert float(jnp.max(jnp.abs(actual["kernel"] - params["kernel"]))) < 0.01
