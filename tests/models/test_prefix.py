"""Prefix language models: a batch marks the tokens that all tokens of their document attend to."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lmjax.decode.logits import Sampling
from lmjax.decode.sample import Sampler
from lmjax.layers.kernels.dispatch import attend
from lmjax.layers.kernels.mask import Mask
from lmjax.layers.positions import Rotary
from lmjax.models.recurrent import Config as RecurrentConfig
from lmjax.models.recurrent import Recurrent
from lmjax.tasks.causal_lm import CausalLM
from lmjax.testing import fake_batch, init_params, tiny_decoder
from lmjax.utils.errors import UserError

SHAPES = {
  "learned": {},
  "rotary": dict(rotary=Rotary(1e4), kv_heads=2, norm="rms", bias=False, tie_embeddings=False),
  "windows": dict(window=4, window_layers=(0, 2), scan=False),
  "remat": dict(remat="full"),
}
# Two documents of 7 and 5 tokens, of which the first 3 and 2 are prefixes, and padding.
ROW = {
  "segments": [1] * 7 + [2] * 5 + [0] * 2,
  "positions": [*range(7), *range(5), 0, 0],
  "prefix": [1, 1, 1, 0, 0, 0, 0, 1, 1, 0, 0, 0, 0, 0],
}
ROW = {key: jnp.asarray([values], jnp.int32) for key, values in ROW.items()}
LENGTH = 14


def made(**changes):
  model = tiny_decoder(**changes)
  ids = jax.random.permutation(jax.random.key(1), 50)[None, :LENGTH]
  return model, init_params(model, {"inputs": ids} | ROW)["params"], ids


@functools.partial(jax.jit, static_argnums=0)
def vectors(model, params, ids, **row):
  return model.apply({"params": params}, {"inputs": ids} | row).tokens


@pytest.mark.parametrize("shape", SHAPES)
def test_a_prefix_sees_itself_and_the_rest_is_causal(shape):
  model, params, ids = made(**SHAPES[shape])

  def outputs(table):
    return vectors(model, params | {"embed": {"table": table}}, ids, **ROW)[0] @ jnp.arange(
      32.0
    )  # the sum is 0 by the last norm

  gradients = jax.jacrev(outputs)(params["embed"]["table"])[:, ids[0]]  # [L, L, D]: every token has a row of its own
  reached = jnp.abs(gradients).sum(-1) > 0
  segments, prefix, places = np.asarray(ROW["segments"][0]), np.asarray(ROW["prefix"][0] > 0), np.arange(LENGTH)
  wanted = (segments[:, None] == segments) & ((places <= places[:, None]) | prefix)
  real = segments > 0
  np.testing.assert_array_equal(reached[real][:, real], wanted[real][:, real])
  assert not reached[real][:, ~real].any()


@pytest.mark.parametrize("shape", SHAPES)
def test_packed_documents_with_prefixes_never_meet(shape):
  model, params, ids = made(**SHAPES[shape])
  together = vectors(model, params, ids, **ROW)
  for part in (slice(0, 7), slice(7, 12)):
    alone = vectors(model, params, ids[:, part], prefix=ROW["prefix"][:, part])
    np.testing.assert_allclose(alone, together[:, part], atol=1e-5)


@pytest.mark.parametrize("shape", SHAPES)
def test_no_prefix_is_causal_and_all_prefix_is_bidirectional(shape):
  model, params, ids = made(**SHAPES[shape])
  causal = vectors(model, params, ids, segments=ROW["segments"], positions=ROW["positions"])
  row = ROW | {"prefix": jnp.zeros_like(ROW["prefix"])}
  np.testing.assert_allclose(vectors(model, params, ids, **row), causal, atol=1e-5)
  reverse = vectors(model, params, ids.at[0, 6].set(ids[0, 13]), **ROW | {"prefix": jnp.ones_like(ROW["prefix"])})
  forward = vectors(model, params, ids, **ROW | {"prefix": jnp.ones_like(ROW["prefix"])})
  assert (jnp.abs(reverse - forward).max(-1)[0, :7] > 1e-6).all()


@pytest.mark.parametrize("shape", ["rotary", "windows"])
def test_cached_decoding_with_a_prefix_is_the_forward_pass(shape):
  """Of prompts of two lengths, padded on the left, whose marks are given or are the whole prompt."""
  model, params, _ = made(**SHAPES[shape], prefix=True)
  prompts, new = [[3, 1, 4, 1, 5], [9, 2, 6]], 4
  sampler = Sampler(model, 16, Sampling(temperature=0.0))
  drawn = np.concatenate([*sampler.tokens(sampler.prepare(params), prompts, new, [0, 0])], axis=1)
  for prompt, continuation in zip(prompts, drawn, strict=True):
    ids = [*prompt, *map(int, continuation)]
    whole = jnp.asarray([ids + [0] * (12 - len(ids))])  # what follows changes nothing
    hidden = vectors(model, params, whole, prefix=jnp.asarray(jnp.arange(12)[None] < len(prompt), jnp.int32))
    scores = model.apply({"params": params}, hidden[0], method="logits")
    assert jnp.argmax(scores, -1)[len(prompt) - 1 : len(ids) - 1].tolist() == continuation.tolist()

  ids = jnp.asarray([[0, 3, 1, 4, 1], [7, 9, 2, 6, 5]])
  prompt = {
    "inputs": ids,
    "segments": jnp.asarray([[0, 1, 1, 1, 1], [1] * 5]),
    "prefix": jnp.asarray([[0, 1, 1, 0, 0]] * 2),
  }
  prefilled, cache = model.apply({"params": params}, prompt, 8, method="prefill")
  extended, _ = model.apply({"params": params}, cache, ids[:, :2], jnp.ones((2, 2), bool), method="extend")
  for row, start in enumerate((1, 0)):
    whole = jnp.concatenate([ids[row, start:], ids[row, :2]])[None]
    marks = jnp.pad(prompt["prefix"][row, start:], (0, 2))[None]
    expected = vectors(model, params, whole, prefix=marks)[0]
    cached = jnp.concatenate([prefilled[row, start:], extended[row]])
    np.testing.assert_allclose(cached, expected, atol=1e-5)


def test_every_kernel_has_the_same_mask():
  q, k, v = jax.random.normal(jax.random.key(0), (3, 1, LENGTH, 2, 8))
  mask = Mask(ROW["segments"], prefix_BxM=ROW["prefix"] > 0, causal=True)
  allowed = Mask(allowed_BxLxM=mask.array(LENGTH, LENGTH))
  assert mask.dense and not mask.triangular
  real = ROW["segments"][0] > 0
  expected = jax.nn.dot_product_attention(q, k, v, mask=allowed.array(LENGTH, LENGTH)[:, None])
  for one in (mask, allowed):
    np.testing.assert_allclose(attend(q, k, v, one)[:, real], expected[:, real], atol=1e-5)


def test_a_task_learns_with_a_prefix_and_an_lstm_refuses_one():
  task = CausalLM(tiny_decoder())
  batch = fake_batch(task)
  params = init_params(task, batch)
  marked = batch | {"prefix": jnp.asarray(batch["positions"] < 4, jnp.int32)}
  losses = [float(task.loss(params, {}, {}, b)[0]["loss"].total) for b in (batch, marked)]
  assert losses[0] != losses[1]
  lstm = CausalLM(Recurrent(RecurrentConfig(vocabulary=50, length=16, width=8, cells=8)))
  with pytest.raises(UserError, match="has no prefix"):
    lstm.loss(init_params(lstm, batch), {}, {}, marked)
