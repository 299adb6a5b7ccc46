"""Encoder-decoders: counts, masks, packing, padding, cached decoding, objectives of the model's own."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from lmjax.layers.relative import bucket, sinusoids
from lmjax.models import bart
from lmjax.models.encoder_decoder import PRESETS, Config, EncoderDecoder
from lmjax.parallel.sharding import count_parameters
from lmjax.tasks.seq2seq import Seq2Seq
from lmjax.testing import init_params

COUNTS = {
  "transformer-base": 63_082_496,
  "transformer-big": 214_245_376,
  "t5-small": 60_506_624,
  "t5-base": 222_903_552,
  "t5-large": 737_668_096,
  "t5-3b": 2_851_598_336,
  "t5-11b": 11_307_321_344,
  "t5-v1_1-small": 76_961_152,
  "t5-v1_1-base": 247_577_856,
  "t5-v1_1-large": 783_150_080,
  "t5-v1_1-xl": 2_849_757_184,
  "t5-v1_1-xxl": 11_135_332_352,
  "bart-base": 139_420_416,
  "bart-large": 406_291_456,
  "marian-base": 73_886_208 + 58_101,  # the bias of the scores
}
RNG = np.random.default_rng(0)
FAMILIES = {
  "t5": {},
  "t5-v1_1": dict(activation="gelu_tanh", gated_mlp=True, tie_embeddings=False),
  "transformer": dict(positions="sinusoidal", norm="layer", post_norm=True, bias=True, scale_scores=True),
  "bart": dict(unembed_bias=True),
  "marian": dict(positions="sinusoidal", embed_norm=False, scale_embedding=True),
}


def tiny(family: str = "t5", **changes) -> EncoderDecoder:
  shape = dict(
    vocabulary=50, length=12, width=32, depth=2, heads=4, head_size=8, mlp=64, num_buckets=8, max_distance=16
  )
  config, model = (bart.Config, bart.Bart) if family in ("bart", "marian") else (Config, EncoderDecoder)
  return model(config(**(shape | FAMILIES[family] | changes)))


def made(model: EncoderDecoder, batch: int = 2, source: int = 12, target: int = 9):
  """Returns parameters, and inputs of both sides."""
  ids = jnp.asarray(RNG.integers(1, 50, (batch, source))), jnp.asarray(RNG.integers(1, 50, (batch, target)))
  return init_params(model, pair(*ids))["params"], *ids


def pair(source, target):
  """Returns a batch of sources and decoder inputs."""
  return {"inputs": source, "decoder_inputs": target}


def vectors(model, params, source, target, **batch):
  """Returns the decoder's final vectors [B, L, D], with further keys of the batch."""
  return model.apply({"params": params}, pair(source, target) | batch).tokens


@pytest.mark.parametrize("name", COUNTS)
def test_parameters_are_as_many_as_published(name):
  if name in bart.PRESETS:
    model = bart.Bart(bart.Config(**bart.PRESETS[name]))
  else:
    model = EncoderDecoder(Config(**PRESETS[name]))
  ids = jnp.zeros((1, 4), jnp.int32)
  assert count_parameters(jax.eval_shape(lambda: model.init(jax.random.key(0), pair(ids, ids)))) == COUNTS[name]


@pytest.mark.parametrize("family", FAMILIES)
def test_a_target_sees_its_past_and_the_whole_source(family):
  model = tiny(family, scan=False)
  params, source, target = made(model, batch=1)
  width = model.config.width
  pushes = jnp.zeros((1, 12, width)), jnp.zeros((1, 9, width))

  def third(pushes):  # a weighted sum of the decoder's vector at place 3, with every embedding pushed
    embed = iter(pushes)

    def intercept(next_fun, args, kwargs, context):
      y = next_fun(*args, **kwargs)
      return y + next(embed) if context.module.name == "embed" and context.method_name == "__call__" else y

    with nn.intercept_methods(intercept):
      return jnp.arange(width) @ vectors(model, params, source, target)[0, 3]  # a norm's plain sum is constant

  by_source, by_target = jax.grad(third)(pushes)
  assert (jnp.abs(by_source[0]).sum(-1) > 0).all()
  assert (jnp.abs(by_target[0]).sum(-1) > 0).tolist() == [True] * 4 + [False] * 5


@pytest.mark.parametrize("family", FAMILIES)
def test_packed_pairs_never_see_each_other_and_padding_is_nothing(family):
  model = tiny(family)
  params, source, target = made(model, batch=1)
  segments = jnp.array([[1] * 5 + [2] * 6 + [0]]), jnp.array([[1] * 4 + [2] * 3 + [0] * 2])
  places = jnp.array([[*range(5), *range(6), 0]]), jnp.array([[*range(4), *range(3), 0, 0]])
  keys = dict(positions=places[0], segments=segments[0], decoder_positions=places[1], decoder_segments=segments[1])
  packed = vectors(model, params, source, target, **keys)
  first = vectors(model, params, source[:, :5], target[:, :4])
  second = vectors(model, params, source[:, 5:11], target[:, 4:7])
  np.testing.assert_allclose(packed[:, :4], first, atol=1e-5)
  np.testing.assert_allclose(packed[:, 4:7], second, atol=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("side", ["left", "right"])
def test_cached_decoding_is_the_full_pass_with_padding_on_either_side(family, side):
  model = tiny(family)
  params, source, target = made(model)
  whole = vectors(model, params, source, target)
  pad = ((0, 0), (4, 0) if side == "left" else (0, 4))
  given = model.decode_layout(params) if side == "left" else params
  shifted = target[:, :4].at[0].set(jnp.array([7, *target[0, :3]]))  # the first row begins a token later
  prompts = pair(jnp.pad(source, pad), shifted)
  prompts |= {"segments": jnp.pad(jnp.ones_like(source), pad), "decoder_segments": jnp.array([[0, 1, 1, 1], [1] * 4])}
  first, cache = model.apply({"params": given}, prompts, 12, method="prefill")
  np.testing.assert_allclose(first[0, 1:], whole[0, :3], atol=1e-5)
  np.testing.assert_allclose(first[1], whole[1, :4], atol=1e-5)
  following = jnp.stack([target[0, 3:7], target[1, 4:8]])
  for i in range(4):
    one, cache = model.apply({"params": given}, cache, following[:, i : i + 1], jnp.ones((2, 1), bool), method="extend")
    np.testing.assert_allclose(one[0, 0], whole[0, 3 + i], atol=1e-5)
    np.testing.assert_allclose(one[1, 0], whole[1, 4 + i], atol=1e-5)
  turned = cache.reorder(jnp.array([1, 0]))
  one, _ = model.apply({"params": given}, turned, target[::-1, 8:9], jnp.ones((2, 1), bool), method="extend")
  np.testing.assert_allclose(one[0, 0], whole[1, 8], atol=1e-5)


@pytest.mark.long
def test_scanned_unrolled_and_rematerialized_are_the_same():
  batch = None
  results = []
  for changes in (dict(), dict(scan=False), dict(remat="full"), dict(remat="dots", scan=False)):
    task = Seq2Seq(tiny("t5-v1_1", dropout=0.1, **changes), target_length=9)
    params, source, target = made(task.model)
    if batch is None:
      ones = jnp.ones_like(target)
      batch = dict(inputs=source, decoder_inputs=target, targets=target, weights=ones * 1.0)
      batch |= dict(segments=jnp.ones_like(source), decoder_segments=ones)

    def loss(params, task=task, batch=batch):
      return task.loss(params, {}, {}, batch, rng=jax.random.key(1))[0]["loss"].total

    results.append(jax.jit(jax.value_and_grad(loss))({"model": params, "heads": {}}))
  for other in results[1:]:
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-5), results[0], other)


def test_buckets_are_the_paper_s():
  near = np.arange(-6, 7)
  assert bucket(jnp.asarray(near), 32, 128, causal=False).tolist() == [6, 5, 4, 3, 2, 1, 0, 17, 18, 19, 20, 21, 22]
  assert bucket(jnp.asarray([0, -1, -15, -16, 3]), 32, 128, causal=True).tolist() == [0, 1, 15, 16, 0]
  far = bucket(jnp.asarray([-127, -128, -5000]), 32, 128, causal=True).tolist()
  assert far == [31, 31, 31]
  assert bucket(jnp.asarray([8, 16, 32, 64, 127]), 32, 128, causal=False).tolist() == [24, 26, 28, 30, 31]


def test_waves_are_the_formula():
  waves = sinusoids(jnp.array([[0, 5]]), 8)
  angles = 5 * 10_000.0 ** (-np.arange(0, 8, 2) / 8)
  np.testing.assert_allclose(waves[0, 1], [*np.sin(angles), *np.cos(angles)], atol=1e-6)
  assert waves[0, 0].tolist() == [0] * 4 + [1] * 4


def test_labels_are_smoothed_in_training_only_and_as_the_formula_says():
  task = Seq2Seq(tiny(), target_length=9, smoothing=0.1)
  params, source, target = made(task.model)
  weights = jnp.asarray(RNG.random(target.shape), jnp.float32)
  batch = dict(inputs=source, decoder_inputs=target, targets=target, weights=weights)
  params = {"model": params, "heads": {}}
  scores = np.asarray(task.forward(params, batch).logits, np.float64)
  logs = scores - np.log(np.exp(scores).sum(-1, keepdims=True))
  hit = np.take_along_axis(logs, np.asarray(target)[..., None], -1)[..., 0]
  smooth = -np.sum(np.asarray(weights) * (0.9 * hit + 0.1 * logs.mean(-1)))
  terms = task.loss(params, {}, {}, batch, rng=jax.random.key(0))[0]
  np.testing.assert_allclose(terms["loss"].total, smooth, rtol=1e-5)
  np.testing.assert_allclose(task.loss(params, {}, {}, batch)[0]["loss"].total, -np.sum(weights * hit), rtol=1e-5)
  plain = dataclasses.replace(task, smoothing=0.0)

  def slow(params):  # the same by plain differentiation
    logs = jax.nn.log_softmax(plain.forward(params, batch).logits)
    hit = jnp.take_along_axis(logs, target[..., None], -1)[..., 0]
    return -jnp.sum(weights * (0.9 * hit + 0.1 * logs.mean(-1)))

  grads = jax.grad(lambda p: task.loss(p, {}, {}, batch, rng=jax.random.key(0))[0]["loss"].total)(params)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5), grads, jax.grad(slow)(params))
