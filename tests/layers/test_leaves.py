"""Leaf types: a toy one, trained through a toy transform, goes through every family as its dense tree does."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from lmjax import checkpoint
from lmjax.compression.base import Identity
from lmjax.decode.logits import Sampling
from lmjax.decode.sample import Sampler
from lmjax.layers import leaves
from lmjax.models.base import GENERATES
from lmjax.optim import Optimizer
from lmjax.parallel.mesh import MeshShape
from lmjax.parallel.sharding import Layout, use_layout
from lmjax.state import named_parameters
from lmjax.tasks.base import weighted_sum
from lmjax.testing import fake_batch, init_state
from lmjax.train import make_step
from lmjax.utils import pytree
from tests.families import FAMILIES, UNSTACKED, tiny_task
from tests.toys import Scale, Scaled

CASES = [(family, {}) for family in FAMILIES] + [(f, {"scan": False}) for f in FAMILIES if f not in UNSTACKED]
LAYOUT = Layout.build(MeshShape().build(jax.devices()[:1]), "ddp")
OPTIMIZER = Optimizer(peak_lr=1e-2)
SCALE = Scale()


def new_state(task, abstract=False, transform=SCALE):
  return init_state(task, OPTIMIZER.build(10), transform, LAYOUT, 4, 16, 0, abstract=abstract)


@functools.cache
def trained(family):
  """Returns the leaf tree of a family, biases and norms moved away from zero and one."""
  params = new_state(tiny_task(family)).params
  rng = np.random.default_rng(0)
  noise = lambda x: x + 0.05 * rng.standard_normal(x.shape).astype(np.float32)  # noqa: E731
  return jax.tree.map(lambda x: x if leaves.is_leaf(x) else noise(x), params, is_leaf=leaves.is_leaf)


def loss_of(task, batch):
  def loss(params):
    terms, _ = task.loss(params, {}, task.initial_carry(4), batch)
    return weighted_sum(task, terms, task.counts(batch))

  return loss


@pytest.mark.parametrize("family, changes", CASES)
def test_loss_and_gradients_are_those_of_the_dense_tree(family, changes):
  """The chain rule by hand: d values = d kernel * scale, d scale = sum of d kernel * values."""
  task, params = tiny_task(family, **changes), trained(family)
  loss, dense = jax.jit(jax.value_and_grad(loss_of(task, fake_batch(task)))), leaves.dense_tree(params)
  (value, grads), (expected, d_dense) = loss(params), loss(dense)
  np.testing.assert_allclose(value, expected, rtol=1e-6)

  wrapped = 0
  for name, leaf in pytree.named_leaves(params, is_leaf=leaves.is_leaf).items():
    gradient = pytree.named_leaves(grads, is_leaf=leaves.is_leaf)[name]
    d_array = np.asarray(pytree.named_leaves(d_dense)[name])
    if not leaves.is_leaf(leaf):
      assert not name.endswith(("kernel", "table")), name
      np.testing.assert_allclose(gradient, d_array, rtol=1e-4, atol=1e-6, err_msg=name)
      continue
    wrapped += 1
    values = np.asarray(leaf.values, np.float32) + np.asarray(leaf.rest, np.float32)
    axis = tuple(i for i, size in enumerate(leaf.scale.shape) if size != leaf.values.shape[i])
    d_scale = np.sum(d_array * values, axis, keepdims=True)
    np.testing.assert_allclose(gradient.scale, d_scale, rtol=1e-3, atol=1e-5, err_msg=name)
    # In bfloat16, in which the gradients of a tied table's two uses are added.
    d_values, rounding = d_array * np.asarray(leaf.scale), 2**-8
    atol = rounding * np.max(np.abs(d_values))
    np.testing.assert_allclose(np.asarray(gradient.values, np.float32), d_values, rtol=rounding, atol=atol)
    assert np.any(d_array) and np.any(gradient.scale), f"{name} has no gradient"
  assert wrapped == sum(name.endswith(("kernel", "table")) for name in pytree.named_leaves(dense)) > 3


@pytest.mark.parametrize("family", FAMILIES)
def test_the_leaf_tree_represents_the_parameters_it_replaced(family):
  """Within the 16 bits that two bfloat16 values have."""
  task = tiny_task(family)
  state, named = new_state(task), named_parameters(task, 4, 16)
  original = pytree.named_leaves(new_state(task, transform=Identity()).params)
  exported = pytree.named_leaves(SCALE.merge(state.params, state.transform, state.frozen.transform))
  assert exported.keys() == original.keys() == pytree.named_leaves(nn.unbox(named)).keys()
  for name, array in exported.items():
    assert isinstance(array, jax.Array) and array.dtype == jnp.float32
    np.testing.assert_allclose(array, original[name], atol=2**-15 * float(jnp.max(jnp.abs(original[name]))) + 1e-9)


@pytest.mark.parametrize("family", FAMILIES)
def test_cast_keeps_scales_in_float32_and_the_loss_within_rounding(family):
  task, params = tiny_task(family, dtype="bfloat16"), trained(family)
  half = leaves.cast(params["model"], jnp.bfloat16)
  for name, array in pytree.named_leaves(half).items():
    kept = name.endswith(("kernel/scale", "table/scale")) or "norm" in name
    assert array.dtype == (jnp.float32 if kept else jnp.bfloat16), name
  loss = jax.jit(loss_of(task, fake_batch(task)))
  np.testing.assert_allclose(loss(params), loss(leaves.dense_tree(params)), rtol=1e-2)


@pytest.mark.parametrize("family", FAMILIES)
def test_scores_are_those_of_the_dense_tree(family):
  """Of tied and untied tables, and of ELMo's softmax."""
  task, params = tiny_task(family), trained(family)
  forward = jax.jit(lambda params: task.forward(params, fake_batch(task)).logits)
  logits = forward(params)
  assert logits.dtype == jnp.float32 and logits.shape[-1] == 50
  np.testing.assert_allclose(logits, forward(leaves.dense_tree(params)), atol=2e-5)


@pytest.mark.parametrize("family", [family for family in FAMILIES if tiny_task(family).model.kind in GENERATES])
def test_decoding_is_that_of_the_dense_tree(family):
  task, params = tiny_task(family), trained(family)
  sampler = Sampler(task.model, 24, Sampling(temperature=0.0))
  sources = [[5, 6, 7], [8]] if task.model.kind == "encoder_decoder" else None
  drawn = []
  for tree in (params, leaves.dense_tree(params)):
    prepared = sampler.prepare(tree["model"])
    drawn.append(np.concatenate(list(sampler.tokens(prepared, [[1, 2, 3], [4]], 6, [0, 0], 6, sources)), axis=1))
  assert drawn[0].shape == (2, 6)
  np.testing.assert_array_equal(*drawn)


@pytest.mark.parametrize("family", ["GPT", "LSTM"])
def test_a_checkpoint_of_a_leaf_tree_comes_back(family, tmp_path):
  """With its moments, after a step."""
  task = tiny_task(family)
  with use_layout(LAYOUT):
    step = jax.jit(make_step(task, OPTIMIZER.build(10), SCALE))
    before = new_state(task)
    state, metrics = step(before, fake_batch(task), jax.random.key(0))
  assert bool(metrics["finite"])
  name = "model/embed/table"
  was, now = (pytree.named_leaves(s.params, is_leaf=leaves.is_leaf)[name] for s in (before, state))
  assert isinstance(now, Scaled) and now.values.dtype == jnp.bfloat16
  assert np.any(was.values != now.values) and np.any(was.scale != now.scale)

  data = checkpoint.data_state(jax.random.key(5), np.zeros((3, 2)), 0)
  checkpoints = checkpoint.Checkpoints(tmp_path)
  checkpoints.save(1, state, data, None)
  checkpoints.close()
  checkpoints = checkpoint.Checkpoints(tmp_path)
  restored, _ = checkpoints.restore(new_state(task, abstract=True), data)
  checkpoints.close()
  assert jax.tree.structure(restored) == jax.tree.structure(state)
  jax.tree.map(np.testing.assert_array_equal, restored, state)
  parts, _ = checkpoint.load(tmp_path, {"params": new_state(task, abstract=True).params})
  jax.tree.map(np.testing.assert_array_equal, parts["params"], state.params)


@pytest.mark.parametrize("named", [True, False])
@pytest.mark.parametrize("family", ["GPT", "BERT"])
def test_parts_inherit_the_names_of_the_parameter(family, named):
  """On one device names do not show in shardings: see tests/multidevice/toy_leaf.py for those."""
  task = tiny_task(family)
  params = jax.eval_shape(lambda: Scale(named).init(task.init(jax.random.key(0), fake_batch(task)))[0])
  kernel = params["model"]["stack"]["layers"]["attention"]["query"]["kernel"]
  if named:
    assert kernel.values.names == kernel.rest.names == ("layers", "width", "heads", "head")
    assert kernel.scale.names == ("layers", None, "heads", "head")
    assert params["model"]["embed"]["table"].scale.names == ("vocabulary", None)
  else:
    assert isinstance(kernel.values, jax.ShapeDtypeStruct)
