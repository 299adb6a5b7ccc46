"""The training step: exact accumulation, metrics, and the optimizer options."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lmjax.compression.base import Identity
from lmjax.optim import Optimizer, averaged
from lmjax.parallel.mesh import MeshShape
from lmjax.parallel.sharding import Layout
from lmjax.tasks.causal_lm import CausalLM
from lmjax.testing import fake_batch, init_state, tiny_decoder
from lmjax.train import make_step

LAYOUT = Layout.build(MeshShape().build(jax.devices()[:1]), "ddp")
RNG = jax.random.key(3)


def setup(task=None, optimizer=None, **changes):
  task = task or CausalLM(tiny_decoder(**changes))
  optimizer = optimizer or Optimizer(peak_lr=1e-2)
  state = init_state(task, optimizer.build(10), Identity(), LAYOUT, 4, 16, 0)
  step = jax.jit(make_step(task, optimizer.build(10), Identity(), optimizer.microbatches))
  return state, step, fake_batch(task)


def test_accumulation_is_the_large_batch():
  """Also where microbatches weigh differently, since the denominators are the whole batch's."""
  state, step, batch = setup()
  batch = batch | {"weights": batch["weights"] * jnp.array([1.0, 0.0, 0.3, 2.0])[:, None]}
  after, metrics = step(state, batch, RNG)
  _, parts, _ = setup(optimizer=Optimizer(peak_lr=1e-2, microbatches=2))
  again, other = parts(state, batch, RNG)
  np.testing.assert_allclose(metrics["loss"].value(), other["loss"].value(), rtol=1e-6)
  np.testing.assert_allclose(metrics["gradient_norm"], other["gradient_norm"], rtol=1e-5)
  # Adam's first update divides a gradient by its own size, so rounding of tiny gradients shows at full rate.
  flat = [np.concatenate([np.ravel(x) for x in jax.tree.leaves(s.params)]) for s in (after, again)]
  assert np.mean(np.abs(flat[0] - flat[1]) > 1e-5) < 1e-3


def test_loss_falls_and_padding_is_ignored():
  state, step, batch = setup()
  changed = batch | {"targets": jnp.where(batch["weights"] > 0, batch["targets"], 7)}
  first = None
  for _ in range(8):
    other, _ = step(state, changed, RNG)
    state, metrics = step(state, batch, RNG)
    jax.tree.map(np.testing.assert_array_equal, state.params, other.params)
    first = first or metrics["loss"].value()
  assert metrics["loss"].value() < first - 0.3
  assert int(state.step) == 8 and bool(metrics["finite"])


def test_a_step_in_bfloat16_makes_every_product_in_float32_on_a_cpu():
  """Attention, kernels, the vocabulary, and the gradients of each: one forgotten is slower there than in float32."""
  state, step, batch = setup(dtype="bfloat16", scan=True)
  made = re.findall(r"dot_general.*-> tensor<[\dx]*x(\w+)>", step.lower(state, batch, RNG).as_text())
  assert len(made) > 20 and set(made) == {"f32"}


def test_a_loss_that_is_not_finite_is_marked():
  state, step, batch = setup()
  state = state.replace(params=jax.tree.map(lambda p: p * jnp.inf, state.params))
  assert not bool(step(state, batch, RNG)[1]["finite"])


def test_dropout_depends_on_the_step():
  state, step, batch = setup(dropout=0.5)
  first, second = step(state, batch, RNG)[1], step(state.replace(step=state.step + 1), batch, RNG)[1]
  assert first["loss"].value() != second["loss"].value()
  assert first["loss"].value() == step(state, batch, RNG)[1]["loss"].value()


@pytest.mark.parametrize("name", ["adamw", "adafactor", "lion", "muon", "sgd"])
def test_every_optimizer_learns(name):
  rate = {"adafactor": 0.1, "lion": 1e-3, "sgd": 0.5}.get(name, 1e-2)  # adafactor: of a parameter's size
  state, step, batch = setup(optimizer=Optimizer(optimizer=name, peak_lr=rate))
  losses = []
  for _ in range(8):
    state, metrics = step(state, batch, RNG)
    losses.append(metrics["loss"].value())
  assert losses[-1] < losses[0] - 0.1, losses


def test_z_loss_is_added_and_nll_is_logged_without_it():
  model = tiny_decoder()
  state, step, batch = setup(CausalLM(model, z_loss=0.1))
  metrics = step(state, batch, RNG)[1]
  assert metrics["loss"].value() > metrics["nll"].value() + 0.5


def test_rates_frozen_parts_and_decay_by_pattern():
  optimizer = Optimizer(peak_lr=1e-2, frozen=("positions",), lr_multipliers={"embed": 0.1}, weight_decay=0.0, clip=0.0)
  state, step, batch = setup(optimizer=optimizer)
  plain, plain_step, _ = setup(optimizer=Optimizer(peak_lr=1e-2, weight_decay=0.0, clip=0.0))
  after, other = step(state, batch, RNG)[0], plain_step(plain, batch, RNG)[0]
  model, before, free = after.params["model"], state.params["model"], other.params["model"]
  np.testing.assert_array_equal(model["positions"]["table"], before["positions"]["table"])
  moved = (model["embed"]["table"] - before["embed"]["table"]) / (free["embed"]["table"] - before["embed"]["table"])
  np.testing.assert_allclose(moved[np.isfinite(moved)], 0.1, rtol=1e-2)

  decay = Optimizer(optimizer="sgd", peak_lr=1.0, final_lr_ratio=1.0, weight_decay=0.5, clip=0.0, schedule="constant")
  state, step, batch = setup(optimizer=decay)
  still = batch | {"weights": jnp.zeros_like(batch["weights"])}
  after = step(state, still, RNG)[0]
  kernel = ("stack", "layers", "mlp", "up", "kernel")
  norm = ("norm", "scale")
  for path, factor in ((kernel, 0.5), (norm, 1.0)):
    was, now = state.params["model"], after.params["model"]
    for key in path:
      was, now = was[key], now[key]
    np.testing.assert_allclose(now, factor * was, rtol=1e-5)


def test_moving_average():
  optimizer = Optimizer(peak_lr=1e-2, ema=0.75)
  state, step, batch = setup(optimizer=optimizer)
  expected = state.params
  for _ in range(3):
    state, _ = step(state, batch, RNG)
    expected = jax.tree.map(lambda a, p: 0.75 * a + 0.25 * p, expected, state.params)
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6),
    averaged(state.opt_state, state.params),
    expected,
  )
