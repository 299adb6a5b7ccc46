"""Optimizers of fine-tuning: learning rates by layer, Adam without bias correction, new layers at the top."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from lmjax.optim import Optimizer
from lmjax.optim.fine_tuning import check_settings, layer_rates
from lmjax.testing import fake_batch, init_params
from lmjax.utils import pytree
from lmjax.utils.errors import UserError
from tests.families import FAMILIES, tiny_task


@pytest.mark.parametrize("family", FAMILIES)
def test_rates_fall_from_layer_to_layer(family):
  task = tiny_task(family)
  params = jax.eval_shape(lambda: init_params(task, fake_batch(task)))
  zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape), params)
  rates = pytree.named_leaves(layer_rates(0.5, zeros))
  stacks = [len(leaf) for name, leaf in pytree.named_leaves(zeros).items() if "/layers/" in name]
  depth = max(stacks, default=task.model.config.depth)  # layers that share their parameters count once
  for name, rate in rates.items():
    if name.startswith("heads/") or "unembed" in name or "pooler" in name or name.endswith("/norm/scale"):
      assert rate == 1.0, name
    elif "/layers/" in name:
      np.testing.assert_allclose(np.ravel(rate), 0.5 ** np.arange(depth)[::-1], err_msg=name)
    elif "_0/" in name and "words" not in name:
      assert rate == 0.5 ** (depth - 1), name
    elif "/embed/" in name or "words" in name:
      assert rate == 0.5**depth, name


def test_updates_are_scaled_by_layer_and_the_decay_of_weights_too():
  params = {
    "model": {"embed": {"table": jnp.ones((4, 2))}, "stack": {"layers": {"mlp": {"kernel": jnp.ones((3, 2, 2))}}}}
  }
  grads = jax.tree.map(lambda p: p * 0.3, params)
  updates = []
  for decay in (1.0, 0.5):
    tx = Optimizer(layer_decay=decay, schedule="constant", weight_decay=0.1, clip=0.0).build(10)
    updates.append(tx.update(grads, tx.init(params), params)[0]["model"])
  plain, scaled = updates
  np.testing.assert_allclose(scaled["embed"]["table"], 0.125 * plain["embed"]["table"], rtol=1e-6)
  one, other = (u["stack"]["layers"]["mlp"]["kernel"] for u in (scaled, plain))
  np.testing.assert_allclose(one, other * jnp.array([0.25, 0.5, 1.0])[:, None, None], rtol=1e-6)
  with pytest.raises(ValueError, match="layer_decay"):
    Optimizer(layer_decay=-0.1)


def test_adam_without_bias_correction():
  grads = [jnp.array([0.5, -2.0]), jnp.array([1.0, 0.1]), jnp.array([-0.3, 0.2])]
  rules = [Optimizer(bias_correction=on, b1=0.9, b2=0.999, clip=0.0)._update_rule() for on in (True, False)]
  states = [rule.init(grads[0]) for rule in rules]
  m = v = 0
  for t, grad in enumerate(grads, 1):
    m, v = 0.9 * m + 0.1 * grad, 0.999 * v + 0.001 * grad**2
    outputs = [rule.update(grad, state) for rule, state in zip(rules, states, strict=True)]
    states = [state for _, state in outputs]
    np.testing.assert_allclose(outputs[1][0], m / (jnp.sqrt(v) + 1e-8), rtol=1e-5)
    factor = (1 - 0.9**t) / (1 - 0.999**t) ** 0.5
    np.testing.assert_allclose(outputs[1][0], factor * outputs[0][0], rtol=1e-4)
  assert optax.tree.norm(outputs[1][0]) > optax.tree.norm(outputs[0][0])


@pytest.mark.parametrize("decay", [0.0, 1.5])
def test_a_decay_that_rises_towards_the_bottom_is_refused(decay):
  with pytest.raises(UserError, match="layer_decay is above 0 and at most 1"):
    Optimizer(layer_decay=decay).build(10)


@pytest.mark.parametrize(
  ("settings", "words"),
  [
    (dict(frozen=("embed", "embedd")), "config.optim.frozen: no parameter matches 'embedd'; they are model/"),
    (dict(lr_multipliers={"haeds": 10.0}), "config.optim.lr_multipliers: no parameter matches 'haeds'"),
    (dict(optimizer="lion", bias_correction=False), "bias_correction is a setting of adamw, not of lion"),
  ],
)
def test_settings_that_apply_to_nothing_are_refused_in_a_new_run(settings, words):
  task = tiny_task("GPT")
  params = init_params(task, fake_batch(task))
  with pytest.raises(UserError, match=words):
    check_settings(Optimizer(**settings), params)
  check_settings(Optimizer(frozen=("embed",), lr_multipliers={"mlp": 0.5}), params)
