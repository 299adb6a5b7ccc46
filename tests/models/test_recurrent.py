"""LSTM and ELMo: state moves where it should, gradients are those of the plain scan, counts are the published ones."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lmjax.data.tokenizers.spelling import spell
from lmjax.decode.logits import Sampling
from lmjax.decode.sample import Sampler
from lmjax.layers import lstm
from lmjax.layers.lstm import LSTM, State
from lmjax.models import elmo, recurrent
from lmjax.models.base import Table
from lmjax.models.elmo import ELMo
from lmjax.models.recurrent import Recurrent
from lmjax.parallel.sharding import count_parameters
from lmjax.tasks.bidirectional_lm import BidirectionalLM, sampled_cross_entropy
from lmjax.tasks.causal_lm import CausalLM
from lmjax.testing import fake_batch, init_params

RNG = np.random.default_rng(0)


def tiny(**changes) -> Recurrent:
  return Recurrent(recurrent.Config(**(dict(vocabulary=50, length=16, width=16, cells=24, depth=2) | changes)))


def tiny_elmo(**changes) -> ELMo:
  shape = dict(vocabulary=60, length=6, width=8, cells=12, embedding=4, filters=((1, 4), (2, 6)), highways=1)
  return ELMo(elmo.Config(**(shape | dict(dropout=0.0) | changes)))


def started(model, *arguments):
  return init_params(model, *arguments)["params"]


def vectors(model, params, inputs, rngs=None, **batch):
  """Returns the final vectors [B, L, D] of ids, with further keys of their batch."""
  return model.apply({"params": params}, {"inputs": inputs} | batch, rngs=rngs).tokens


def floats(*shape) -> jax.Array:
  return jnp.asarray(RNG.normal(size=shape), jnp.float32)


def test_an_lstm_is_the_formula():
  layer, x = LSTM(cells=5, width=3, clip=0.2), floats(2, 4, 6)
  params = started(layer, x)
  y, state = layer.apply({"params": params}, x)
  h, c = np.zeros((2, 3)), np.zeros((2, 5))
  sigmoid = lambda a: 1 / (1 + np.exp(-a))  # noqa: E731
  for t in range(4):
    a = np.einsum("bd,dqf->bqf", x[:, t], params["input"]["kernel"]) + params["input"]["bias"][None]
    i, g, f, o = (a + np.einsum("bd,dqf->bqf", h, params["hidden"]["kernel"])).swapaxes(0, 1)
    c = np.clip(sigmoid(f + 1) * c + sigmoid(i) * np.tanh(g), -0.2, 0.2)
    h = np.clip(sigmoid(o) * np.tanh(c) @ params["project"]["kernel"], -0.2, 0.2)
    np.testing.assert_allclose(y[:, t], h, atol=1e-6)
  np.testing.assert_allclose(state.c_BxF, c, atol=1e-6)


def test_in_bfloat16_every_product_is_made_in_float32():
  """In the program, since XLA may leave out a rounding that is written there."""
  layer, x = LSTM(cells=24, width=16), floats(2, 4, 16).astype(jnp.bfloat16)
  value = lambda params: jnp.sum(layer.apply({"params": params}, x)[1].h_BxD)  # noqa: E731
  program = jax.jit(jax.grad(value)).lower(started(layer, x)).as_text()
  made = re.findall(r"dot_general.*-> tensor<[\dx]*x(\w+)>", program)
  assert len(made) >= 7 and set(made) == {"f32"}


@pytest.mark.parametrize(("cells", "clip"), [(8, 0.3), (5, 0.0)])
def test_the_gradient_is_that_of_the_plain_scan(cells, clip, monkeypatch):
  layer, x = LSTM(cells, 5, clip), floats(3, 7, 5)
  params = started(layer, x)
  state = State(0.1 * floats(3, 5), 0.1 * floats(3, cells))
  valid, resets = jnp.asarray(RNG.random((3, 7)) > 0.3), jnp.asarray(RNG.random((3, 7)) < 0.2)
  drop, wanted = jnp.asarray(RNG.integers(0, 2, (3, 5)) * 2.0, jnp.float32), floats(3, 7, 5)

  def value(params, x, state):
    y, after = layer.apply({"params": params}, x, state, valid, resets, drop)
    return jnp.sum(y * wanted) + jnp.sum(after.h_BxD**2) + jnp.sum(jnp.sin(after.c_BxF))

  written = jax.grad(value, argnums=(0, 1, 2))(params, x, state)
  monkeypatch.setattr(lstm, "_scan", lambda *arguments: lstm._forward(*arguments)[0])
  plain = jax.grad(value, argnums=(0, 1, 2))(params, x, state)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), written, plain)


def test_no_vector_depends_on_what_comes_later_or_on_another_document():
  task = CausalLM(tiny())
  batch = fake_batch(task, batch=2)
  params = init_params(task, batch)

  before = vectors(task.model, params["model"], **batch)
  later = vectors(task.model, params["model"], **batch | {"inputs": batch["inputs"].at[:, 6].add(1)})
  assert np.array_equal(before[:, :6], later[:, :6]) and not np.array_equal(before[:, 6:10], later[:, 6:10])
  assert np.array_equal(before[:, 10:], later[:, 10:])  # the second document starts at 10 and is not concerned
  alone = vectors(task.model, params["model"], batch["inputs"][:, 10:])
  np.testing.assert_allclose(before[:, 10:15], alone[:, :5], atol=1e-6)


def test_steps_that_a_token_takes_are_those_of_the_whole_text_and_padding_takes_none():
  model = tiny()
  tokens = jnp.asarray(RNG.integers(0, 50, (2, 9)))
  params = started(model, {"inputs": tokens})
  whole = vectors(model, params, tokens)
  shifted = jnp.stack([jnp.pad(tokens[0, :3], (2, 0)), tokens[1, :5]])
  prompts = {"inputs": shifted, "segments": jnp.asarray([[0, 0, 1, 1, 1], [1, 1, 1, 1, 1]])}
  first, cache = model.apply({"params": params}, prompts, 20, method="prefill")
  np.testing.assert_allclose(first[0, 2:], whole[0, :3], atol=1e-6)
  one, cache = model.apply(
    {"params": params}, cache.reorder(jnp.array([1, 0])), tokens[::-1, jnp.array([3])], jnp.ones((2, 1), bool),
    method="extend",
  )  # fmt: skip
  np.testing.assert_allclose(one[1, 0], whole[0, 3], atol=1e-6)


def test_the_sampler_continues_with_an_lstm_as_the_whole_pass_says():
  model = tiny()
  params = started(model, {"inputs": jnp.zeros((1, 4), jnp.int32)})
  sampler = Sampler(model, max_tokens=40, sampling=Sampling(temperature=0.0))
  drawn = np.concatenate(list(sampler.tokens(params, [[1, 2, 3], [4]], 6, [0, 0])), axis=1)
  text = [1, 2, 3]
  for token in drawn[0]:
    hidden = vectors(model, params, jnp.array([text]))
    scores = model.apply({"params": params}, hidden[:, -1], method="logits")
    assert token == int(jnp.argmax(scores))
    text.append(int(token))


def test_dropout_is_the_same_along_a_row():
  model = tiny(dropout=0.5)
  x = jnp.full((1, 12), 3)
  params = started(model, {"inputs": x})
  params["layers_0"]["hidden"]["kernel"] *= 0  # nothing is remembered but through the cells
  zero, other = (np.asarray(vectors(model, params, x, {"dropout": jax.random.key(i)}) == 0) for i in (1, 2))
  assert zero.any() and (zero == zero[:, :1]).all()  # a dropped unit is dropped at every step
  assert not np.array_equal(zero, other)


def spelled(*rows: str, length: int = 6) -> jnp.ndarray:
  """Returns the characters [B, L, 10] of rows of words."""
  characters = np.zeros((len(rows), length, 10), np.int32)
  for row, words in enumerate(rows):
    for place, word in enumerate(words.split()):
      characters[row, place] = spell(word, 10)
  return jnp.asarray(characters)


def layers_of(model, params, characters):
  """Returns every layer's vectors [1 + N, B, L, 2 D]."""
  hidden = model.apply({"params": params}, {"characters": characters}, taps=("hidden",))
  np.testing.assert_array_equal(hidden.tokens, hidden.taps["hidden"][-1])
  return hidden.taps["hidden"]


def test_elmo_has_the_published_parameters():
  model = ELMo(elmo.Config(vocabulary=793_471, length=20, **elmo.PRESETS["elmo-original"]))
  shapes = jax.eval_shape(lambda: model.init(jax.random.key(0), {"characters": jnp.zeros((1, 2, 50), jnp.int32)}))
  assert count_parameters(shapes) == 93_600_848


def test_each_direction_knows_its_own_side_and_padding_is_nothing():
  model, characters = tiny_elmo(), spelled("a cat sat down", "dogs")
  params = started(model, {"characters": characters})
  layers = layers_of(model, params, characters)
  changed = layers_of(model, params, spelled("a cat sits down", "dogs"))
  same = np.isclose(layers[-1, 0], changed[-1, 0]).all(axis=-1)
  assert not same[:4].any()
  ahead, back = np.split(np.isclose(layers[-1, 0], changed[-1, 0]), 2, axis=-1)
  assert ahead[:2].all() and not ahead[2:4].all() and back[3].all() and not back[:3].all()
  longer = layers_of(model, params, spelled("a cat sat down", "dogs", length=9))
  np.testing.assert_allclose(longer[:, :, :4][:, 0], layers[:, 0, :4], atol=1e-6)


def test_without_lstms_each_word_has_its_own_vector():
  model, characters = tiny_elmo(depth=0), spelled("a cat sat down", "dogs")
  params = started(model, {"characters": characters})
  assert set(params) == {"words"}
  layers, deeper = layers_of(model, params, characters), tiny_elmo()
  more = started(deeper, {"characters": characters}) | params
  np.testing.assert_array_equal(layers, layers_of(deeper, more, characters)[:1])
  with pytest.raises(ValueError, match="depth is 0: a bidirectional language model has at least one LSTM"):
    BidirectionalLM(model, characters=10)


def test_states_continue_from_batch_to_batch():
  model = tiny_elmo()
  task = BidirectionalLM(model, characters=10)
  x = spelled("a b c d e f")
  params = init_params(task, {"characters": x})
  targets, ones = jnp.asarray(RNG.integers(0, 60, (1, 6))), jnp.ones((1, 6))

  def batch(part):
    both = {"characters": x[:, part], "targets": targets[:, part], "weights": ones[:, part]}
    return both | {"reverse_characters": x[:, part], "reverse_targets": targets[:, part]}

  whole, _ = task.loss(params, {}, task.initial_carry(1), batch(slice(0, 6)))
  first, carry = task.loss(params, {}, task.initial_carry(1), batch(slice(0, 3)))
  second, _ = task.loss(params, {}, carry, batch(slice(3, 6)))
  for direction in ("forwards", "backwards"):
    total = first[direction].total + second[direction].total
    np.testing.assert_allclose(total, whole[direction].total, rtol=1e-5)
  assert not np.isclose(task.loss(params, {}, task.initial_carry(1), batch(slice(3, 6)))[0]["forwards"].total,
                        second["forwards"].total)  # fmt: skip


def test_sampled_words_stand_for_all():
  x, table, bias = floats(2, 3, 8), floats(128, 8), floats(128)
  targets, weights = jnp.asarray(RNG.integers(0, 100, (2, 3))), jnp.asarray([[1, 1, 0.5], [1, 0, 1]])
  scores = np.einsum("bld,vd->blv", x, table[:100]) + bias[None, None, :100]
  log_z = np.log(np.exp(scores).sum(-1))
  full = np.sum(weights * (log_z - np.take_along_axis(scores, np.asarray(targets)[..., None], -1)[..., 0]))
  table = Table(table, bias)
  many = sampled_cross_entropy(jax.random.key(0), x, table, targets, weights, 100, 400_000)
  np.testing.assert_allclose(many, full, rtol=0.01)  # the draws' own noise at 400,000: about 0.3 %
  few = [sampled_cross_entropy(jax.random.key(i), x, table, targets, weights, 100, 200) for i in range(50)]
  np.testing.assert_allclose(np.mean(few), full, rtol=0.1)


def test_evaluation_scores_all_words():
  task = BidirectionalLM(tiny_elmo(), characters=10, negatives=3)
  zeros = {key: jnp.zeros(leaf.shape, leaf.dtype) for key, leaf in task.spec(1, 6).items()}
  batch = zeros | {"characters": spelled("a b c"), "reverse_characters": spelled("c b a"), "weights": jnp.ones((1, 6))}
  params = init_params(task, batch)
  full = BidirectionalLM(task.model, characters=10)
  carry = task.initial_carry(1)
  whole = full.loss(params, {}, carry, batch)[0]["forwards"].total
  assert task.loss(params, {}, carry, batch)[0]["forwards"].total == whole
  trained = task.loss(params, {}, carry, batch, rng=jax.random.key(0))[0]["forwards"].total
  assert trained < whole  # fewer words to be wrong about
