"""Sampling against the full forward pass and NumPy; rows are independent."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lmjax.data.tokenizers.base import Bytes
from lmjax.decode import sample as decoding
from lmjax.decode.logits import Sampling
from lmjax.decode.sample import Sampler, prefill
from lmjax.inference.stream_text import StreamedText
from lmjax.layers.positions import Rotary
from lmjax.testing import fake_batch, init_params, tiny_decoder
from lmjax.utils.errors import UserError
from tests.families import tiny_task
from tests.models.test_decoder import SHAPES, made

PROMPTS = [[3, 1, 4, 1, 5], [9], [2, 6, 5]]


def sample(sampler, params, prompts=PROMPTS, new=8, seeds=(0, 1, 2), every=3):
  return np.concatenate(list(sampler.tokens(params, prompts, new, seeds, every)), axis=1)


@pytest.mark.parametrize("shape", SHAPES)
def test_greedy_is_the_argmax_of_the_full_forward_pass(shape):
  model, params = made(**SHAPES[shape])
  sampler = Sampler(model, 16, Sampling(temperature=0))
  continuations = sample(sampler, sampler.prepare(params))

  @jax.jit
  def best(ids_1xL):
    hidden = model.apply({"params": params}, {"inputs": ids_1xL})
    return model.apply({"params": params}, hidden.tokens, method="logits").argmax(-1)

  for row, prompt in enumerate(PROMPTS):
    ids = list(prompt)
    for _ in range(8):  # later tokens have no effect, so one padded length is enough
      padded = jnp.zeros((1, 16), jnp.int32).at[0, : len(ids)].set(jnp.array(ids))
      ids.append(int(best(padded)[0, len(ids) - 1]))
    assert continuations[row].tolist() == ids[len(prompt) :]


def test_a_row_does_not_depend_on_other_rows_or_on_every():
  model, params = made()
  sampler = Sampler(model, 16, Sampling(temperature=0.9, top_p=0.9))
  params = sampler.prepare(params)
  together = sample(sampler, params)
  for row, prompt in enumerate(PROMPTS):
    assert sample(sampler, params, [prompt], seeds=[row], every=1)[0].tolist() == together[row].tolist()
  assert sample(sampler, params, [[9], [9]], seeds=[5, 5]).std(axis=0).max() == 0
  assert sample(sampler, params, [[9], [9]], seeds=[5, 6]).std(axis=0).max() > 0


def test_parameters_are_prepared_by_one_program():
  """Reinforcement learning prepares them before every rollout."""
  model, params = made()
  before = decoding.prepare._cache_size()
  for _ in range(3):
    Sampler(type(model)(model.config), 16).prepare(params)
  assert decoding.prepare._cache_size() - before <= 1


def test_an_end_token_ends_only_its_row():
  model, params = made()
  free = Sampler(model, 16, Sampling(temperature=0))
  params = free.prepare(params)
  rows = sample(free, params)
  end = int(rows[0, 3])
  ended = sample(dataclasses.replace(free, end=end), params)
  for before, after in zip(rows.tolist(), ended.tolist(), strict=True):
    stop = before.index(end) + 1 if end in before else len(before)
    assert after[:stop] == before[:stop][: len(after)]
    assert all(token == -1 for token in after[stop:])


def test_prompts_of_impossible_lengths_are_refused():
  model, params = made()
  sampler = Sampler(model, 16)
  with pytest.raises(UserError, match="generate at most 11"):
    sample(sampler, params, new=12)
  with pytest.raises(UserError, match="no tokens"):
    sample(sampler, params, [[1], []], seeds=[0, 0])


rng = np.random.default_rng(0)
LOGITS = rng.standard_normal((4, 20)).astype(np.float32) * 2
SEEN = rng.random((4, 20)) < 0.3


def kept(sampling):
  return np.isfinite(np.asarray(sampling.filter(jnp.asarray(LOGITS), jnp.asarray(SEEN))))


def softmax(x):
  e = np.exp(x - x.max(-1, keepdims=True))
  return e / e.sum(-1, keepdims=True)


def test_top_k():
  assert (kept(Sampling(top_k=3)) == (np.sort(LOGITS)[:, -3:-2] <= LOGITS)).all()


@pytest.mark.parametrize("p", [0.1, 0.5, 0.95])
def test_top_p_keeps_the_fewest_tokens_that_reach_p(p):
  for row, mask in zip(softmax(LOGITS), kept(Sampling(top_p=p)), strict=True):
    order = np.argsort(-row)
    fewest = np.searchsorted(np.cumsum(row[order]), p) + 1
    assert set(np.flatnonzero(mask)) == set(order[:fewest])


def test_min_p():
  p = softmax(LOGITS)
  assert (kept(Sampling(min_p=0.2)) == (p >= 0.2 * p.max(-1, keepdims=True))).all()


def test_temperature_and_repetition_penalty():
  logits = Sampling(temperature=0.5, repetition_penalty=1.5).filter(jnp.asarray(LOGITS), jnp.asarray(SEEN))
  expected = np.where(SEEN, np.where(LOGITS > 0, LOGITS / 1.5, LOGITS * 1.5), LOGITS) / 0.5
  np.testing.assert_allclose(logits, expected, rtol=1e-6)


def test_samples_follow_the_distribution():
  """A chi-squared statistic of 4,000 samples over 20 tokens is below its 99.99 % point, 51."""
  keys = jax.random.split(jax.random.key(0), 4000)
  logits = jnp.tile(LOGITS[:1], (4000, 1))
  drawn = Sampling().draw(keys, logits, jnp.zeros(logits.shape, bool))
  expected = 4000 * softmax(LOGITS[0])
  counts = np.bincount(drawn, minlength=20)
  assert ((counts - expected) ** 2 / expected).sum() < 51


@pytest.mark.parametrize("changes", [{}, dict(temperature=0.0), dict(temperature=0.0, repetition_penalty=1.5)])
def test_excluded_ids_are_never_drawn(changes):
  best = tuple(np.argsort(-LOGITS[0])[:19].tolist())  # all but the worst, whose logit is below 0
  assert LOGITS[0].min() < 0
  keys, logits = jax.random.split(jax.random.key(0), 50), jnp.tile(LOGITS[:1], (50, 1))
  drawn = Sampling(**changes, excluded=best).draw(keys, logits, jnp.zeros(logits.shape, bool))
  assert set(drawn.tolist()) == {int(LOGITS[0].argmin())}


@pytest.mark.parametrize("changes", [dict(temperature=-1.0), dict(top_p=0.0), dict(min_p=2.0), dict(top_k=-1)])
def test_impossible_settings_are_refused(changes):
  with pytest.raises(ValueError):
    Sampling(**changes)


def test_text_comes_in_complete_characters_and_ends_at_a_stop():
  tokenizer = Bytes()
  text = StreamedText(tokenizer, [256, *b"say "], ["END"])
  chunks = [text.add([byte]) for byte in "é🦙 ENgo END more".encode()]
  assert "".join(chunks) + text.finish() == "é🦙 ENgo " and text.stopped
  assert chunks[0] == "" and chunks[1] == "é", "half a character waits"
  assert "\ufffd" not in "".join(chunks)


@pytest.mark.parametrize("length", [5, 8, 11])
@pytest.mark.parametrize("family", ["GPT", "Llama", "LSTM"])
def test_a_prompt_that_is_read_in_parts_continues_as_one_that_is_read_whole(family, length, monkeypatch):
  """Whatever the padding: in the first row it fills more than one part."""
  task = tiny_task(family, vocabulary=50, length=16)
  params = init_params(task, fake_batch(task))["model"]
  tokens = jax.random.randint(jax.random.key(0), (2, length), 0, 50)
  valid = jnp.arange(length)[None] >= jnp.array([[length - 2], [1]])
  whole = prefill(task.model, params, tokens, valid, 16, None)
  monkeypatch.setattr(decoding, "PART", 4)
  parts = prefill(task.model, params, tokens, valid, 16, None)
  assert parts[0].shape[1] == 1, "it was read in parts"
  np.testing.assert_allclose(parts[0][:, -1], whole[0][:, -1], atol=1e-5)
  more = [task.model.apply({"params": params}, cache, tokens[:, :1], valid[:, -1:], method="extend")[0]
          for _, cache in (parts, whole)]  # fmt: skip
  np.testing.assert_allclose(*more, atol=1e-5)


def test_a_prompt_is_read_whole_where_its_end_changes_its_beginning(monkeypatch):
  monkeypatch.setattr(decoding, "PART", 4)
  for changes in ({"prefix": True}, {"rotary": Rotary(scaling="dynamic", factor=2.0, original=4)}):
    model = tiny_decoder(**changes)
    tokens = jnp.arange(1, 11)[None]
    params = init_params(model, {"inputs": tokens})["params"]
    assert prefill(model, params, tokens, tokens > 0, 16, None)[0].shape[1] == 10


def test_the_memory_of_a_long_prompt_does_not_grow_with_its_square(monkeypatch):
  model = tiny_decoder(rotary=Rotary(), length=2064)
  params = init_params(model, {"inputs": jnp.zeros((1, 8), jnp.int32)})["params"]
  sampler, sizes = Sampler(model, 2064, Sampling(temperature=0)), {}
  prompt = np.zeros((1, 2048), np.int32), np.ones((1, 2048), bool), np.zeros(1, np.uint32)
  for part in (128, 2048):
    monkeypatch.setattr(decoding, "PART", part)
    jax.clear_caches()
    compiled = Sampler._prefill.lower(sampler, params, *prompt, 2064, None).compile()
    sizes[part] = compiled.memory_analysis().temp_size_in_bytes
  assert sizes[128] < sizes[2048] / 4
