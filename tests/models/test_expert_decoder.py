"""Properties of mixtures of experts, and of the decoder that has them."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import unflatten_dict

from lmjax.compression.lora import LoRA
from lmjax.compression.masks import removed
from lmjax.compression.quantize import Quantize
from lmjax.decode.sample import prepare
from lmjax.layers.experts import Experts, mix, permute, route
from lmjax.layers.leaves import is_leaf
from lmjax.models.active import active_parameters
from lmjax.models.expert_decoder import PRESETS, Config, ExpertDecoder
from lmjax.parallel.sharding import count_parameters, is_partitioned
from lmjax.planning.flops import count
from lmjax.testing import fake_batch, init_params
from lmjax.utils.pytree import named_leaves
from tests.families import tiny_expert_lm

WIDTH, MLP, EXPERTS, CHOSEN = 8, 12, 4, 2


def made(gated=True, normalize=True, seed=0):
  """Returns a layer, its parameters as numpy arrays, and vectors [3, 5, 8]."""
  layer = Experts(WIDTH, MLP, EXPERTS, CHOSEN, gated=gated, normalize=normalize, deviation=0.5)
  x = np.random.default_rng(seed).normal(size=(3, 5, WIDTH)).astype(np.float32)
  params = init_params(layer, jnp.asarray(x))["params"]
  return layer, jax.tree.map(np.asarray, params), x


def dense_loop(params, x, chosen=CHOSEN, normalize=True):
  """Returns what a loop over all tokens and all of their experts computes."""
  y = np.zeros_like(x)
  kernel = {name: part["kernel"] for name, part in params.items()}
  for place in np.ndindex(x.shape[:2]):
    scores = x[place] @ kernel["router"]
    p = np.exp(scores - scores.max()) / np.exp(scores - scores.max()).sum()
    best = np.argsort(-p, kind="stable")[:chosen]
    for e in best:
      up = x[place] @ kernel["up"][e]
      gate = x[place] @ kernel["gate"][e] if "gate" in kernel else up
      inner = gate / (1 + np.exp(-gate)) * (up if "gate" in kernel else 1)
      y[place] += p[e] / (p[best].sum() if normalize else 1) * (inner @ kernel["down"][e])
  return y


@pytest.mark.parametrize("options", [{}, dict(gated=False), dict(normalize=False)], ids=str)
def test_a_mixture_is_a_dense_loop_over_experts(options):
  layer, params, x = made(**options)
  y = layer.apply({"params": params}, jnp.asarray(x))
  np.testing.assert_allclose(y, dense_loop(params, x, normalize=options.get("normalize", True)), atol=2e-5)


def test_the_order_of_experts_does_not_matter():
  layer, params, x = made()
  order = np.array([2, 0, 3, 1])
  shuffled = {name: {"kernel": part["kernel"][order]} for name, part in params.items() if name != "router"}
  shuffled["router"] = {"kernel": params["router"]["kernel"][:, order]}
  one, two = (layer.apply({"params": p}, jnp.asarray(x)) for p in (params, shuffled))
  np.testing.assert_allclose(one, two, atol=1e-5)


@pytest.mark.parametrize("favoured", [(0, 1), (2, 3), (3, 0)])
def test_no_token_is_dropped_where_all_choose_the_same_experts(favoured):
  """The others are empty; their gradients are zero, and those of the router finite."""
  layer, params, x = made()
  x = np.abs(x)
  router = np.full((WIDTH, EXPERTS), -5.0, np.float32)
  router[:, favoured] = 5.0
  router[0, favoured[0]] = 6.0
  params = params | {"router": {"kernel": router}}
  np.testing.assert_allclose(layer.apply({"params": params}, jnp.asarray(x)), dense_loop(params, x), atol=5e-5)
  gradients = jax.grad(lambda p: (layer.apply({"params": p}, jnp.asarray(x)) ** 2).sum())(params)
  used = np.abs(gradients["up"]["kernel"]).max(axis=(1, 2)) > 0
  assert used.tolist() == [e in favoured for e in range(EXPERTS)]
  assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradients))


def test_gradients_are_those_of_a_sum_over_all_experts():
  layer, params, x = made()

  def masked(params, x):
    """Every expert of every token, the weights of those that are not chosen being zero."""
    chosen, weights = route(jnp.einsum("bld,dx->blx", x, params["router"]["kernel"]), CHOSEN, True)
    weight = jnp.sum(jax.nn.one_hot(chosen, EXPERTS) * weights[..., None], axis=2)
    up, gate = (jnp.einsum("bld,xdf->blxf", x, params[name]["kernel"]) for name in ("up", "gate"))
    return jnp.einsum("blxf,xfd,blx->bld", jax.nn.silu(gate) * up, params["down"]["kernel"], weight)

  def loss(function):
    return jax.grad(lambda p, x: (function(p, x) ** 2).sum(), argnums=(0, 1))(params, jnp.asarray(x))

  ours, wanted = loss(lambda p, x: layer.apply({"params": p}, x)), loss(masked)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-3, rtol=1e-4), ours, wanted)


def test_the_gradient_of_a_permutation_is_its_inverse():
  order = jnp.array([2, 0, 1])
  x = jnp.arange(6.0).reshape(3, 2)
  factors = jnp.array([[1.0], [2.0], [3.0]])
  gradient = jax.grad(lambda x: (permute(x, order, jnp.argsort(order)) * factors).sum())(x)
  assert gradient[:, 0].tolist() == [2, 3, 1]


def test_bfloat16_stays_bfloat16():
  layer, params, x = made()
  y = layer.apply({"params": params}, jnp.asarray(x, jnp.bfloat16))
  assert y.dtype == jnp.bfloat16
  # A rounded score may choose another expert for a token; most tokens keep theirs.
  error = np.abs(np.asarray(y, np.float32) - dense_loop(params, x)).max(-1)
  assert np.median(error) < 0.1 * np.abs(dense_loop(params, x)).max()


def test_the_flops_are_those_of_the_chosen_experts():
  _, params, x = made()
  kernels = {name: jnp.asarray(params[name]["kernel"]) for name in ("up", "gate", "down")}
  chosen, weights = np.zeros((3, 5, CHOSEN), np.int32), np.ones((3, 5, CHOSEN), np.float32)
  forward = lambda k, x: mix(x, jnp.asarray(chosen), jnp.asarray(weights), k, "silu")  # noqa: E731
  flops = count(forward, kernels, jnp.asarray(x))
  assert flops.weights == 3 * 2 * 15 * CHOSEN * WIDTH * MLP and flops.attention == 0
  both = count(jax.grad(lambda k, x: forward(k, x).sum(), argnums=(0, 1)), kernels, jnp.asarray(x))
  assert both.weights == 3 * flops.weights, "the gradient of a kernel takes as much as the product"


# The decoder.


def decoder(**changes):
  """Returns a tiny decoder with experts, and parameters that are not at their special initial values."""
  model = tiny_expert_lm(**changes).model
  params = init_params(model, {"inputs": jnp.zeros((1, 8), jnp.int32)})["params"]
  rng = np.random.default_rng(0)
  return model, jax.tree.map(lambda p: p + 0.05 * rng.standard_normal(p.shape).astype(np.float32), params)


def tokens(batch=2, length=12, seed=1):
  return jnp.asarray(np.random.default_rng(seed).integers(0, 50, (batch, length)))


def test_scan_is_loop_is_remat():
  model, params = decoder()

  def loss(params, model):
    hidden = model.apply({"params": params}, {"inputs": tokens()}, taps=("router_scores",))
    return (hidden.tokens**2).mean() + hidden.taps["router_scores"].mean(), hidden.taps["router_scores"]

  step = jax.jit(jax.value_and_grad(loss, has_aux=True), static_argnums=1)
  (value, taps), grads = step(params, model)
  assert taps.shape == (2, 2, 12, 4) and taps.dtype == jnp.float32
  for changes in (dict(scan=False, remat="full"), dict(remat="dots")):
    other = ExpertDecoder(dataclasses.replace(model.config, **changes))
    (same, same_taps), others = step(params, other)
    np.testing.assert_allclose(value, same, rtol=1e-5)
    np.testing.assert_allclose(taps, same_taps, atol=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), grads, others)


def test_cached_decoding_is_the_full_forward():
  model, params = decoder()
  ids = tokens(3)
  hidden = model.apply({"params": params}, {"inputs": ids}).tokens
  extend = jax.jit(functools.partial(model.apply, method="extend"))
  for tree in (params, model.decode_layout(params)):
    prompt = {"inputs": ids[:, :5], "segments": jnp.ones((3, 5), jnp.int32)}
    part, cache = model.apply({"params": tree}, prompt, 16, method="prefill")
    parts = [part]
    for start, end in ((5, 6), (6, 7), (7, 12)):
      valid = jnp.ones((3, end - start), bool)
      part, cache = extend({"params": tree}, cache, ids[:, start:end], valid)
      parts.append(part)
    np.testing.assert_allclose(jnp.concatenate(parts, 1), hidden, atol=1e-5)


def test_packed_documents_never_meet():
  model, params = decoder()
  first, second = tokens(1, 7), tokens(1, 5, seed=2)
  batch = {
    "inputs": jnp.concatenate([first, second], 1),
    "positions": jnp.concatenate([jnp.arange(7), jnp.arange(5)])[None],
    "segments": jnp.array([[1] * 7 + [2] * 5]),
  }
  together = model.apply({"params": params}, batch).tokens
  for alone, part in ((first, together[:, :7]), (second, together[:, 7:])):
    np.testing.assert_allclose(model.apply({"params": params}, {"inputs": alone}).tokens, part, atol=1e-5)


def test_every_expert_is_compressed_and_adapted_by_itself():
  """Scales of int8 kernels, factors of LoRA and the values that pruning removes are those of one expert."""
  boxed = (task := tiny_expert_lm()).init(jax.random.key(0), fake_batch(task, 1, 8))
  name, target = "model/stack/layers/mlp/down/kernel", "mlp/(up|gate|down)/kernel"
  named = named_leaves(boxed, is_leaf=is_partitioned)
  kernel_NxXxFxD = named[name].value
  scaled = named | {name: named[name].replace(value=kernel_NxXxFxD * jnp.arange(1, 5)[None, :, None, None])}
  rounded = Quantize(targets=target).apply(task, scaled)[name]
  assert rounded.scale.shape[:2] == (2, 4)
  np.testing.assert_allclose(rounded.dense(jnp.float32), scaled[name].value, atol=float(rounded.scale.max()) / 2)

  quantized = Quantize(targets=target, group=16).apply(task, named)
  tree = unflatten_dict({k: getattr(v, "value", v) for k, v in quantized.items()}, sep="/")["model"]
  hidden = task.model.apply({"params": tree}, {"inputs": tokens(1, 4)}).tokens
  prompt = {"inputs": tokens(1, 4), "segments": jnp.ones((1, 4), jnp.int32)}
  part, _ = task.model.apply({"params": prepare(task.model, tree)}, prompt, 8, method="prefill")
  np.testing.assert_allclose(part, hidden, atol=1e-5)

  lora = LoRA(targets=target, rank=2)
  trained, _, frozen = lora.init(boxed)
  trained = jax.tree.map(lambda box: box.value + 0.1, trained, is_leaf=is_partitioned)
  frozen = jax.tree.map(lambda box: box.value, frozen, is_leaf=is_partitioned)
  leaf = named_leaves(lora.forward(trained, {}, frozen), is_leaf=is_leaf)[name]
  assert leaf.a.shape == (2, 4, 32, 2) and leaf.b.shape == (2, 4, 2, 32)
  wanted = leaf.base + leaf.scale * jnp.einsum("nxfr,nxrd->nxfd", leaf.a, leaf.b)
  np.testing.assert_allclose(leaf.dense(jnp.float32), wanted, atol=1e-5)

  lost = removed(jnp.abs(scaled[name].value), scaled[name].names, "layer", 0.5)
  assert (lost.mean(axis=(2, 3)) == 0.5).all(), "as many of each expert, although their values differ in size"


@pytest.mark.parametrize(("name", "total", "active"), [
  ("mixtral-8x7b", 46_702_792_704, 12_879_925_248), ("mixtral-8x22b", 140_630_071_296, 39_161_468_928),
])  # fmt: skip
def test_parameter_counts(name, total, active):
  preset = {key: value for key, value in PRESETS[name].items() if key != "rotary"}
  model = ExpertDecoder(Config(**preset, rotary=tiny_expert_lm().model.config.rotary))
  named = jax.eval_shape(lambda: model.init(jax.random.key(0), {"inputs": jnp.zeros((1, 8), jnp.int32)})["params"])
  assert (count_parameters(named), active_parameters(named, model.config)) == (total, active)


@pytest.mark.parametrize(("changes", "message"), [
  (dict(chosen=5), "at most experts"), (dict(chosen=0), "at least 1"), (dict(mlp_bias=True), "no biases"),
])  # fmt: skip
def test_impossible_shapes_are_refused(changes, message):
  with pytest.raises(ValueError, match=message):
    tiny_expert_lm(**changes)
