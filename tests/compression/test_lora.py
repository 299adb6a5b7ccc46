"""LoRA: step 0 is the base model, what full fine-tuning does is within reach, and only factors are trained."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lmjax import sections
from lmjax.compression.base import Identity
from lmjax.compression.lora import LoRA, LowRank
from lmjax.decode.logits import Sampling
from lmjax.decode.sample import Sampler
from lmjax.layers import leaves
from lmjax.optim import Optimizer
from lmjax.parallel.mesh import MeshShape
from lmjax.parallel.sharding import Layout, use_layout
from lmjax.state import make_init
from lmjax.tasks.base import weighted_sum
from lmjax.testing import fake_batch, init_state
from lmjax.train import make_step
from lmjax.utils import pytree
from lmjax.utils.errors import UserError
from tests.families import FAMILIES, UNSTACKED, tiny_task

LAYOUT = Layout.build(MeshShape().build(jax.devices()[:1]), "ddp")
ADAMW = Optimizer(peak_lr=1e-2, warmup=0, weight_decay=0.0)
ALL = LoRA(targets="(kernel|table)$", rank=4)
FAST = ("GPT", "LSTM")  # the other families run with --all
EACH = [family if family in FAST else pytest.param(family, marks=pytest.mark.slow) for family in FAMILIES]
CASES = [(f, {}) for f in FAMILIES] + [(f, {"scan": False}) for f in FAMILIES if f not in UNSTACKED]
QUICK = [("GPT", {}), ("GPT", {"scan": False}), ("LSTM", {})]
CASES = [case if case in QUICK else pytest.param(*case, marks=pytest.mark.slow) for case in CASES]


def new_state(task, transform=ALL, optimizer=ADAMW, abstract=False):
  return init_state(task, optimizer.build(10), transform, LAYOUT, 4, 16, 0, abstract=abstract)


def model_params(transform, state):
  return transform.forward(state.params, state.transform, state.frozen.transform)


@functools.cache
def trained(family):
  """Returns the state of a family with every factor moved away from zero."""
  state, rng = new_state(tiny_task(family)), np.random.default_rng(0)
  noise = lambda x: x + 0.05 * rng.standard_normal(x.shape).astype(np.float32)  # noqa: E731
  return state.replace(params=jax.tree.map(noise, state.params))


def loss_of(task, batch):
  def loss(params):
    terms, _ = task.loss(params, {}, task.initial_carry(4), batch)
    return weighted_sum(task, terms, task.counts(batch))

  return loss


@pytest.mark.parametrize("dtype", ["float32", pytest.param("bfloat16", marks=pytest.mark.long)])
@pytest.mark.parametrize("family", EACH)
def test_step_0_is_the_base_model(family, dtype):
  """Bit for bit; with a bfloat16 base too, where the model computes in it.

  Not compiled but in a few families: what XLA fuses in two programs, it may round in two ways.
  """
  task = tiny_task(family, dtype=dtype)
  plain = new_state(task, Identity()).params
  transform = LoRA(targets="kernel$", rank=4, dtype=dtype)
  state = new_state(task, transform)
  forward = jax.jit(lambda params: task.forward(params, fake_batch(task)).logits)
  loss = jax.jit(loss_of(task, fake_batch(task)))
  with jax.disable_jit(family not in FAST):
    np.testing.assert_array_equal(forward(model_params(transform, state)), forward(plain))
    np.testing.assert_array_equal(loss(model_params(transform, state)), loss(plain))


@pytest.mark.parametrize("family, changes", CASES)
def test_loss_and_gradients_are_those_of_the_merged_kernels(family, changes):
  """By the chain rule: d a = scale * d W b^T and d b = scale * a^T d W."""
  task, state = tiny_task(family, **changes), trained(family)
  loss, factors = jax.jit(jax.value_and_grad(loss_of(task, fake_batch(task)))), model_params(ALL, state)
  dense = ALL.merge(state.params, state.transform, state.frozen.transform)
  (value, grads), (expected, d_dense) = loss(factors), loss(dense)
  np.testing.assert_allclose(value, expected, rtol=1e-5)
  grads, d_dense = pytree.named_leaves(grads, is_leaf=leaves.is_leaf), pytree.named_leaves(d_dense)
  wrapped = 0
  for name, leaf in pytree.named_leaves(factors, is_leaf=leaves.is_leaf).items():
    if not leaves.is_leaf(leaf):
      continue
    wrapped += 1
    product = lambda a, b: leaf.scale * jnp.tensordot(a, b, 1)  # noqa: B023, E731
    stacked = leaf.a.ndim + leaf.b.ndim - 2 > leaf.base.ndim
    (d_a, d_b) = jax.vjp(jax.vmap(product) if stacked else product, leaf.a, leaf.b)[1](d_dense[name])
    for got, wanted in ((grads[name].a, d_a), (grads[name].b, d_b)):
      np.testing.assert_allclose(got, wanted, rtol=2e-3, atol=2e-6 + 2e-4 * np.max(np.abs(wanted)), err_msg=name)
  assert wrapped == sum(name.endswith(("kernel", "table")) for name in d_dense) > 3


@pytest.mark.parametrize(
  "family", ["GPT", pytest.param("LSTM", marks=pytest.mark.slow), pytest.param("T5", marks=pytest.mark.slow)]
)
def test_decoding_is_that_of_the_merged_kernels(family):
  task, state = tiny_task(family), trained(family)
  sampler = Sampler(task.model, 24, Sampling(temperature=0.0))
  sources = [[5, 6, 7], [8]] if task.model.kind == "encoder_decoder" else None
  drawn = []
  for tree in (model_params(ALL, state), ALL.merge(state.params, {}, state.frozen.transform)):
    prepared = sampler.prepare(tree["model"])
    drawn.append(np.concatenate(list(sampler.tokens(prepared, [[1, 2, 3], [4]], 6, [0, 0], 6, sources)), axis=1))
  np.testing.assert_array_equal(*drawn)


@pytest.mark.parametrize("family", EACH)
def test_a_step_trains_factors_alone(family):
  """The optimizer has moments of nothing else, and a second step moves both factors."""
  task, transform = tiny_task(family), LoRA(targets="kernel$", rank=2)
  with use_layout(LAYOUT):
    step = jax.jit(make_step(task, ADAMW.build(10), transform))
    before = state = new_state(task, transform)
    for _ in range(2):
      state, metrics = step(state, fake_batch(task), jax.random.key(0))
  assert bool(metrics["finite"])
  jax.tree.map(np.testing.assert_array_equal, state.frozen, before.frozen)
  factors = pytree.named_leaves(before.params)
  heads = [name for name in factors if name.startswith("heads/") and not name.endswith(("/a", "/b"))]
  assert all(name.endswith(("kernel/a", "kernel/b")) for name in set(factors) - set(heads))
  for name, array in pytree.named_leaves(state.params).items():
    assert np.any(array != factors[name]), name
  arrays = [leaf for leaf in jax.tree.leaves(state.opt_state) if leaf.ndim]
  assert len(arrays) == 2 * len(factors)


def full_rank(state):
  """Returns a state whose factors are an identity and zeros, so that b is what is added to the kernel."""

  def leaf(name, value):
    if not name.endswith("/a"):
      return value
    layers, rank = value.shape[0], value.shape[-1]
    return jnp.broadcast_to(jnp.eye(rank), (layers, rank, rank)).reshape(value.shape)

  return state.replace(params=pytree.map_named(leaf, state.params))


@pytest.mark.parametrize(
  "family, optimizer",
  [("GPT", "adamw"), ("GPT", "sgd"), *(pytest.param(f, "adamw", marks=pytest.mark.slow) for f in ("BERT", "T5"))],
)
def test_at_full_rank_with_a_fixed_it_is_full_fine_tuning_of_the_same_kernels(family, optimizer):
  """With a = 1 and scale 1, b is the change of the kernel and has its gradient, so all optimizers move both alike."""
  kernels, task = "(query|out)/kernel", tiny_task(family)
  base = dict(optimizer=optimizer, peak_lr=2e-2, schedule="constant", warmup=0, weight_decay=0.0, clip=0.0)
  plain = Optimizer(**base, frozen=(f"^(?!.*{kernels})",))
  lora = LoRA(targets=kernels, rank=32, alpha=32)
  fixed = Optimizer(**base, frozen=("/a$|^heads/",))
  losses = []
  for transform, optim in ((Identity(), plain), (lora, fixed)):
    state, values = new_state(task, transform, optim), []
    state = full_rank(state) if transform is lora else state
    step = jax.jit(make_step(task, optim.build(20), transform))
    with use_layout(LAYOUT):
      for i in range(20):
        state, metrics = step(state, fake_batch(task, seed=i % 2), jax.random.key(0))
        values.append(metrics["loss"].value())
    losses.append(values)
  np.testing.assert_allclose(losses[1], losses[0], rtol=1e-5)
  assert losses[0][0] - losses[0][-1] > 0.01


def test_every_update_is_within_reach_at_full_rank():
  rng = np.random.default_rng(0)
  base, change = (rng.standard_normal((6, 4)).astype(np.float32) for _ in range(2))
  u, s, v = np.linalg.svd(change, full_matrices=False)
  leaf = LowRank(jnp.asarray(base), jnp.asarray(u * s), jnp.asarray(v), 1.0)
  np.testing.assert_allclose(leaf.dense(jnp.float32), base + change, atol=1e-5)


def test_ranks_and_scales_by_pattern():
  """The first pattern that matches; alpha / r, or alpha / sqrt(r)."""
  task = tiny_task("GPT")
  lora = LoRA("kernel$", 4, 8, {"mlp": 2, "attention/out": 16}, {"attention/(out|key)": 32.0})
  shapes = {name: leaf.shape for name, leaf in pytree.named_leaves(new_state(task, lora, abstract=True).params).items()}
  layer = "model/stack/layers"
  assert shapes[f"{layer}/attention/query/kernel/a"] == (3, 32, 4)
  assert shapes[f"{layer}/attention/query/kernel/b"] == (3, 4, 4, 8)
  assert shapes[f"{layer}/attention/out/kernel/a"] == (3, 4, 8, 16)
  assert shapes[f"{layer}/attention/out/kernel/b"] == (3, 16, 32)
  assert shapes[f"{layer}/mlp/down/kernel/a"] == (3, 64, 2)
  scales = {"query": 2.0, "out": 2.0, "key": 8.0}
  for name, scale in scales.items():
    assert lora.scale_of(f"{layer}/attention/{name}/kernel") == scale
  stabilized = LoRA("kernel$", 4, 8, rank_stabilized=True)
  assert stabilized.scale_of("x/kernel") == 4.0


def test_factors_start_as_seed_and_name_say():
  task = tiny_task("GPT")

  def factor(seed, name="query"):
    params = new_state(task, LoRA(seed=seed)).params
    return params["model"]["stack"]["layers"]["attention"][name]["kernel"]

  one, same, other, value = factor(1), factor(1), factor(2), factor(1, "value")
  np.testing.assert_array_equal(one["a"], same["a"])
  assert np.any(one["a"] != other["a"]) and np.any(one["a"] != value["a"]) and not np.any(one["b"])
  assert 0.9 * 32**-0.5 < np.max(np.abs(one["a"])) <= 32**-0.5


def test_train_names_what_else_is_trained():
  state = new_state(tiny_task("GPT"), LoRA(train="norm/scale|positions"), abstract=True)
  names = {name for name in pytree.named_leaves(state.params) if not name.endswith(("/a", "/b"))}
  norms = {"model/norm/scale", "model/stack/layers/mlp_norm/scale", "model/stack/layers/attention_norm/scale"}
  assert names == norms | {"model/positions/table"}
  assert not names & set(pytree.named_leaves(state.frozen.transform))


@pytest.mark.parametrize("base", ["float32", "bfloat16"])
def test_what_is_frozen_has_its_type_but_for_norms(base):
  state = new_state(tiny_task("BERT"), LoRA(dtype=base), abstract=True)
  frozen = pytree.named_leaves(state.frozen.transform)
  assert {leaf.dtype for name, leaf in frozen.items() if "norm" not in name} == {jnp.dtype(base)}
  assert all(leaf.dtype == jnp.float32 for name, leaf in frozen.items() if "norm" in name)
  assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(state.params))


@pytest.mark.parametrize(
  "options, message",
  [
    (dict(rank=0), "a rank must be at least 1"),
    (dict(rank_pattern={"mlp": 0}), "a rank must be at least 1"),
    (dict(targets="("), "not a regular expression"),
    (dict(alpha_pattern={"[": 1.0}), "not a regular expression"),
    (dict(dtype="float16"), "float32 or bfloat16"),
    (dict(ranks=3), "no such key"),
    (dict(seed=3), "another section sets it"),
  ],
)
def test_options_are_checked(options, message):
  with pytest.raises(UserError, match=message) as error:
    sections.build(dict(kind="lmjax.compression.lora:LoRA") | options, "transform", seed=5)
  assert "\n" not in str(error.value)


@pytest.mark.parametrize(
  "options, message",
  [
    (dict(targets="query/bias"), r"matches no kernel; those of this model: .*query/kernel"),
    (dict(train="scores"), "matches no parameter that is not a target"),
  ],
)
def test_a_pattern_must_match(options, message):
  with pytest.raises(UserError, match=message) as error:
    make_init(tiny_task("GPT"), ADAMW.build(1), LoRA(**options), LAYOUT, 4, 16, 0)
  assert "\n" not in str(error.value)


def test_dropout_is_of_what_a_reads_in_training_alone():
  rng = np.random.default_rng(0)
  base, a, b, x = (rng.standard_normal(shape).astype(np.float32) for shape in ((6, 5), (6, 2), (2, 5), (3, 4, 6)))
  kernel = LowRank(base, a, b, 0.5, 0.3)
  product = lambda leaf: np.asarray(leaves.einsum("BLD,DE->BLE", x, leaf))  # noqa: E731
  whole = product(kernel)
  np.testing.assert_allclose(whole, x @ (base + 0.5 * a @ b), rtol=1e-4, atol=1e-5)
  some = [product(kernel.in_training(lambda i=i: jax.random.key(i))) for i in range(400)]
  assert not np.allclose(some[0], some[1], atol=1e-3)
  error = np.std(some, axis=0) / 20  # of the mean of 400
  assert np.all(np.abs(np.mean(some, axis=0) - whole) < 5 * error + 1e-4)  # the mean is that without dropout
  change = some[0] - x @ base
  kept = np.linalg.lstsq((0.5 * a @ b).T, change.reshape(-1, 5).T, rcond=None)[1]
  assert kept.max(initial=0.0) < 1e-6  # the base is not dropped: the change is in the space of B
  assert product(LowRank(base, a, b, 0.5).in_training(lambda: 1 / 0)).tolist() == whole.tolist()


@pytest.mark.parametrize("family", EACH)
def test_dropout_of_a_model_and_of_its_layers(family):
  task, batch = tiny_task(family), fake_batch(tiny_task(family))
  state = trained(family)
  params = {
    p: dataclasses.replace(ALL, dropout=p).forward(state.params, state.transform, state.frozen.transform)
    for p in (0.0, 0.5)
  }

  @jax.jit
  def loss(params, rng):
    return weighted_sum(task, task.loss(params, {}, task.initial_carry(4), batch, rng=rng)[0], task.counts(batch))

  one, two = jax.random.split(jax.random.key(0))
  assert loss(params[0.0], one) == loss(params[0.0], two)
  assert loss(params[0.5], one) != loss(params[0.5], two) and loss(params[0.5], one) == loss(params[0.5], one)
  assert loss_of(task, batch)(params[0.5]) == loss_of(task, batch)(params[0.0])
