"""The losses that make a router use all experts."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lmjax.compression.base import Identity
from lmjax.optim import Optimizer
from lmjax.state import FrozenState, TrainState
from lmjax.tasks.expert_lm import ExpertLM
from lmjax.testing import fake_batch, init_params, tiny_decoder
from lmjax.train import make_step
from tests.families import tiny_expert_lm

SCORES = np.random.default_rng(0).normal(size=(2, 3, 6, 4)).astype(np.float32)
REAL = np.array([[1] * 6, [1] * 4 + [0] * 2, [0, 1, 1, 0, 0, 0]], np.float32)


def values(task, scores, real):
  return {name: mean.value() for name, mean in task.routing(jnp.asarray(scores), jnp.asarray(real)).items()}


def test_the_losses_are_those_of_plain_numpy():
  """Layer by layer and row by row, each row weighted by its tokens."""
  wanted: dict[str, list] = {"balance": [], "router_z": [], "max_load": []}
  weights, used = [], np.zeros(4)
  for layer in SCORES:
    for scores, real in zip(layer, REAL, strict=True):
      scores = scores[real > 0]
      p = np.exp(scores) / np.exp(scores).sum(-1, keepdims=True)
      load = np.bincount(np.argsort(-p, axis=-1)[:, :2].ravel(), minlength=4) / len(scores)
      wanted["balance"].append(4 * (load * p.mean(0)).sum())
      wanted["router_z"].append((np.log(np.exp(scores).sum(-1)) ** 2).mean())
      wanted["max_load"].append(load.max() * 4 / 2)
      weights.append(len(scores))
      used += load * len(scores)
  found = values(tiny_expert_lm(), SCORES, REAL)
  for name, rows in wanted.items():
    np.testing.assert_allclose(found[name], np.average(rows, weights=weights), rtol=1e-5, err_msg=name)
  np.testing.assert_allclose([found[f"expert_{i}"] for i in range(4)], used / used.sum(), rtol=1e-5)


@pytest.mark.torch
def test_one_row_and_layer_has_the_loss_of_transformers():
  torch = pytest.importorskip("torch")
  from transformers.models.mixtral.modeling_mixtral import load_balancing_loss_func

  for layer in SCORES:
    for scores, real in zip(layer, REAL, strict=True):
      wanted = load_balancing_loss_func((torch.tensor(scores),), 4, 2, torch.tensor(real)[None])
      found = values(tiny_expert_lm(), scores[None, None], real[None])["balance"]
      np.testing.assert_allclose(found, float(wanted), rtol=1e-5)


def test_equal_use_of_all_experts_is_the_number_of_experts_of_a_token():
  scores = np.log(np.array([[4, 3, 2, 1], [1, 2, 3, 4], [4, 1, 2, 3], [2, 4, 3, 1]], np.float32) / 10)
  even = np.stack([scores[0], scores[1]])[None, None]  # experts 0, 1 and then 2, 3
  found = values(tiny_expert_lm(), even, np.ones((1, 2), np.float32))
  assert abs(found["balance"] - 2) < 1e-5 and found["max_load"] == 1 and abs(found["router_z"]) < 1e-9
  same = np.stack([scores[0]] * 2)[None, None]
  worst = values(tiny_expert_lm(), same, np.ones((1, 2), np.float32))
  assert worst["balance"] > 2.5 and worst["max_load"] == 2 and worst["expert_0"] == 0.5


def test_padding_changes_no_loss():
  task = tiny_expert_lm()
  params = init_params(task, batch := fake_batch(task, 2, 16))
  padded = {key: np.pad(np.asarray(value), ((0, 1), (0, 8))) for key, value in batch.items()}
  padded["inputs"][:, 16:] = 7
  loss = jax.jit(lambda b: task.loss(params, {}, {}, b)[0])
  one, two = (loss(b) for b in (batch, {k: jnp.asarray(v) for k, v in padded.items()}))
  for name, mean in one.items():
    np.testing.assert_allclose(mean.value(), two[name].value(), rtol=2e-5, err_msg=name)


def test_microbatches_add_up_and_the_router_learns_from_both_losses():
  task = tiny_expert_lm()
  params = init_params(task, batch := fake_batch(task, 4, 16))
  batch["segments"] = batch["segments"].at[0, 8:].set(0)  # rows of different lengths
  optimizer = Optimizer(peak_lr=1e-3, warmup=0)

  def stepped(task, microbatches):
    tx = optimizer.build(10)
    state = TrainState(jnp.zeros((), jnp.int32), params, tx.init(params), {}, {}, FrozenState({}, {}))
    state, metrics = jax.jit(make_step(task, tx, Identity(), microbatches))(state, batch, jax.random.key(0))
    assert metrics.pop("counted")
    return state.params, {k: m.value() if hasattr(m, "value") else float(m) for k, m in metrics.items()}

  whole, metrics = stepped(task, 1)
  parts, same = stepped(task, 2)
  for name, value in metrics.items():
    np.testing.assert_allclose(value, same[name], rtol=1e-4, err_msg=name)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5), whole, parts)
  wanted = metrics["nll"] + 0.02 * metrics["balance"] + 0.001 * metrics["router_z"]
  np.testing.assert_allclose(metrics["loss"], wanted, rtol=1e-5)
  assert abs(sum(metrics[f"expert_{i}"] for i in range(4)) - 1) < 1e-5


def test_the_gradient_of_the_router_is_that_of_its_losses():
  """Both losses move the router of every layer, and nothing below the first."""
  task = tiny_expert_lm()
  params = init_params(task, batch := fake_batch(task, 2, 16))

  def loss(params, name):
    terms = task.loss(params, {}, {}, batch)[0]
    return terms[name].total / terms[name].count

  for name in ("balance", "router_z"):
    gradient = jax.jit(jax.grad(loss), static_argnums=1)(params, name)["model"]["stack"]["layers"]["mlp"]
    assert (np.abs(gradient["router"]["kernel"]).max(axis=(1, 2)) > 0).all(), name
    assert not gradient["down"]["kernel"][-1].any(), "the experts of the last layer come after its router"


def test_a_model_without_experts_is_refused():
  with pytest.raises(ValueError, match="has no experts"):
    ExpertLM(tiny_decoder())
  with pytest.raises(ValueError, match="at least 0"):
    tiny_expert_lm(balance=float("nan"))
