"""Quantization-aware training: the loss of the rounded model, its gradient past the rounding, and what is opened."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lmjax import storage
from lmjax.__main__ import main
from lmjax.compression.quantize import QTensor, quantize
from lmjax.compression.quantize_aware import QuantizeAware
from lmjax.parallel.sharding import use_layout
from lmjax.tasks.base import weighted_sum
from lmjax.testing import fake_batch, init_params, init_state
from lmjax.train import make_step
from lmjax.utils import pytree
from lmjax.utils.errors import UserError
from tests.compression.test_prune import ADAMW, EACH, LAYOUT, boxed
from tests.families import tiny_task

NAME = "lmjax.compression.quantize_aware:QuantizeAware"
SETTINGS = dict(dtype="int4", group=8, symmetric=False)


def boxed_tree(task):
  named = boxed(task)
  return pytree.map_named(lambda name, _: named[name], init_params(task, fake_batch(task)))


@pytest.mark.parametrize("family", EACH)
def test_loss_and_gradient_are_those_of_the_rounded_model(family):
  task, transform = tiny_task(family), QuantizeAware(**SETTINGS)
  params, batch = init_params(task, fake_batch(task)), fake_batch(task)
  _, state, _ = transform.init(boxed_tree(task))
  state = jax.tree.map(lambda box: box.value, state, is_leaf=lambda x: hasattr(x, "names"))
  rounded = transform.merge(params, state, {})
  changed = {n for n, x in pytree.named_leaves(rounded).items() if np.any(x != pytree.named_leaves(params)[n])}
  assert changed == set(pytree.named_leaves(state["scales"]))

  def loss(function):
    def total(params):
      terms, _ = task.loss(function(params), {}, task.initial_carry(4), batch)
      return weighted_sum(task, terms, task.counts(batch))

    return total

  with use_layout(LAYOUT):
    own = jax.jit(jax.value_and_grad(loss(lambda p: transform.forward(p, state, {}))))(params)
    theirs = jax.jit(jax.value_and_grad(loss(lambda p: p)))(rounded)
  largest = max(float(jnp.max(jnp.abs(gradient))) for gradient in jax.tree.leaves(theirs[1]))
  for ours, wanted in zip(jax.tree.leaves(own), jax.tree.leaves(theirs), strict=True):
    np.testing.assert_allclose(ours, wanted, rtol=1e-5, atol=1e-5 * largest)


def test_training_lowers_the_loss_and_the_scales_follow_the_weights():
  task, transform = tiny_task("GPT"), QuantizeAware(**SETTINGS)
  with use_layout(LAYOUT):
    state = init_state(task, ADAMW.build(20), transform, LAYOUT, 4, 16, 0)
    step, losses = jax.jit(make_step(task, ADAMW.build(20), transform)), []
    for _ in range(20):
      state, metrics = step(state, fake_batch(task), jax.random.key(0))
      losses.append(float(metrics["loss"].value()))
  assert losses[-1] < losses[0] - 0.5
  named, merged = (pytree.named_leaves(x) for x in (state.params, transform.merge(state.params, state.transform, {})))
  for name, scale in pytree.named_leaves(state.transform["scales"]).items():
    dtype, symmetric = ("int8", True) if name.endswith("table") else ("int4", False)
    wanted = quantize(named[name], scale.shape, dtype, symmetric)
    np.testing.assert_array_equal(scale, wanted.scale, err_msg=name)
    np.testing.assert_array_equal(merged[name], wanted.dense(jnp.float32), err_msg=name)


@pytest.mark.long
def test_a_run_is_opened_rounded_and_its_copy_has_the_same_values(tmp_path, capsys):
  run, copy = tmp_path / "run", tmp_path / "int8"
  options = ["--config", "configs/quickstart.py:debug", "--config.steps=2", f"--config.transform.kind={NAME}"]
  assert main(["train", "--workdir", str(run), *options]) == 0
  assert main(["train", "--workdir", str(run), *options, "--config.steps=3"]) == 0  # resumes
  assert main(["compress", "--workdir", str(run), "--output", str(copy), "--quantize", "int8", "--measure", ""]) == 0
  one, other = (pytree.named_leaves(storage.open(x).load().params, is_leaf=lambda x: isinstance(x, QTensor))
                for x in (run, copy))  # fmt: skip
  quantized = {name for name, value in other.items() if isinstance(value, QTensor)}
  assert quantized and all(isinstance(value, jax.Array | np.ndarray) for value in one.values())
  for name in quantized:
    np.testing.assert_allclose(other[name].dense(jnp.float32), one[name], rtol=1e-6, atol=1e-7, err_msg=name)


def test_a_pattern_without_kernels_is_refused():
  with pytest.raises(UserError, match="matches no kernel"):
    QuantizeAware(targets="nothing", tables="").init(boxed_tree(tiny_task("GPT")))
