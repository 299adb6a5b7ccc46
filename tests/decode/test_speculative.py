"""Speculative decoding: the model's own distribution, whatever the draft is."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lmjax.decode.logits import Sampling
from lmjax.decode.sample import Sampler
from lmjax.decode.speculative import SpeculativeSampler, compact
from lmjax.layers.cache import Cache
from lmjax.testing import init_params, tiny_decoder
from lmjax.utils.errors import UserError
from tests.families import LLAMA, tiny_expert_lm, tiny_task

PROMPTS = [[3, 1, 4, 1, 5], [9], [2, 6, 5]]
GREEDY = Sampling(temperature=0)


def noisy(model, scale, seed=0):
  """Returns parameters far from their initial values, the same for the same seed but for noise of this scale."""
  params = init_params(model, {"inputs": jnp.zeros((1, 8), jnp.int32)})["params"]
  rng, noise = np.random.default_rng(0), np.random.default_rng(seed)
  return jax.tree.map(
    lambda p: p + rng.normal(0, 0.3, p.shape).astype("f") + noise.normal(0, scale, p.shape).astype("f"), params
  )


def pair(scale=0.1, length=32, **changes):
  """Returns a model, its parameters, and those of a draft that is nearly as good."""
  model = tiny_decoder(depth=1, length=length, **(LLAMA | changes))
  return model, (noisy(model, 0), noisy(model, scale, seed=1))


def sample(sampler, params, prompts=PROMPTS, new=20, seeds=(0, 1, 2)):
  return np.concatenate(list(sampler.tokens(params, prompts, new, seeds, 3)), axis=1)


@pytest.mark.parametrize("scale", [0.0, 0.1, 2.0], ids=["the model", "a good draft", "a bad draft"])
def test_greedy_tokens_are_those_of_the_model(scale):
  """Rows accept different numbers of drafts, and their caches are compacted on the way."""
  model, params = pair(scale)
  plain = Sampler(model, 32, GREEDY)
  wanted = sample(plain, plain.prepare(params[0]))
  sampler = SpeculativeSampler(model, model, 32, GREEDY, count=3)
  assert sample(sampler, sampler.prepare(params)).tolist() == wanted.tolist()
  counts = sampler.counts
  assert counts.tokens == 3 * 19 and 0 <= counts.accepted <= counts.drafted == 3 * counts.steps
  if scale == 0:
    assert counts.accepted >= 0.9 * (counts.drafted - 9), "all but those beyond the last token"
  if scale == 2:
    assert counts.steps > 30, "few drafts are accepted"


@pytest.mark.slow
def test_models_of_other_kinds_draft():
  """A learned-position draft of another width for a mixture of experts."""
  model, draft = tiny_expert_lm(length=32).model, tiny_decoder(length=32, depth=1)
  params = noisy(model, 0), noisy(draft, 0)
  plain = Sampler(model, 32, GREEDY)
  wanted = sample(plain, plain.prepare(params[0]), new=8)
  sampler = SpeculativeSampler(model, draft, 32, GREEDY, count=2)
  assert sample(sampler, sampler.prepare(params), new=8).tolist() == wanted.tolist()


def chi_squared(one, two):
  """Returns the statistic of two samples of pairs of tokens, and its degrees of freedom; rare pairs are pooled."""
  a, b = (np.bincount(x[:, 0] * 50 + x[:, 1], minlength=2500).astype(float) for x in (one, two))
  rare = a + b < 20
  a, b = (np.append(x[~rare], x[rare].sum()) for x in (a, b))
  total = a + b
  return ((a - b) ** 2 / np.maximum(total, 1)).sum(), len(a) - 1


@pytest.mark.parametrize("sampling", [Sampling(temperature=0.6), Sampling(top_k=5)], ids=["all tokens", "top 5"])
def test_samples_follow_the_models_distribution(sampling):
  """Tokens 2 and 3 of 6,000 continuations against as many of plain sampling, at the 99.99 % point; and a test that
  would see the draft's distribution, or one in which rejected tokens were drawn from p."""
  model, params = pair(0.1)
  rows, new = 2000, 3
  sampler = SpeculativeSampler(model, model, 32, sampling, count=2)
  plain = Sampler(model, 32, sampling)
  prompts, ours, theirs, drafts = [[3, 1]] * rows, [], [], []
  both = sampler.prepare(params)
  for part in range(3):
    seeds = np.arange(rows) + part * rows
    ours.append(sample(sampler, both, prompts, new, seeds)[:, 1:3])
    theirs.append(sample(plain, both[0], prompts, new, seeds + 10**6)[:, 1:3])
    drafts.append(sample(plain, both[1], prompts, new, seeds)[:, 1:3])
  ours, theirs, drafts = map(np.concatenate, (ours, theirs, drafts))
  statistic, degrees = chi_squared(ours, theirs)
  limit = degrees + 3.72 * np.sqrt(2 * degrees) + 10
  assert statistic < limit, (statistic, degrees)
  assert chi_squared(drafts, theirs)[0] > 1.5 * limit, "the draft alone has another distribution"
  assert 0.1 < sampler.counts.accepted / sampler.counts.drafted < 0.9


def test_a_row_does_not_depend_on_other_rows():
  model, params = pair(0.1)
  sampler = SpeculativeSampler(model, model, 32, Sampling(temperature=0.9, top_p=0.9), count=3)
  params = sampler.prepare(params)
  together = sample(sampler, params, PROMPTS[::2], seeds=[0, 1])
  for row, prompt in enumerate(PROMPTS[::2]):
    assert sample(sampler, params, [prompt], seeds=[row])[0].tolist() == together[row].tolist()


def test_an_end_token_ends_only_its_row():
  model, params = pair(0.05)
  free = SpeculativeSampler(model, model, 32, GREEDY, count=3)
  params = free.prepare(params)
  rows = sample(free, params)
  for end in {int(rows[0, 0]), int(rows[0, 5])}:
    ended = sample(dataclasses.replace(free, end=end), params)
    for before, after in zip(rows.tolist(), ended.tolist(), strict=True):
      stop = before.index(end) + 1 if end in before else len(before)
      assert after[:stop] == before[:stop] and all(token == -1 for token in after[stop:])


def test_a_compacted_cache_has_the_same_tokens_in_the_same_order():
  rng = np.random.default_rng(0)
  valid = rng.random((3, 9)) < 0.5
  keys, values = rng.normal(size=(3, 2, 4, 9)), rng.normal(size=(3, 2, 9, 4))
  positions = np.cumsum(valid, axis=1) - 1
  cache = compact(Cache(((jnp.asarray(keys), jnp.asarray(values)),), jnp.asarray(valid), jnp.asarray(positions), 9))
  assert int(cache.index) == valid.sum(1).max()
  assert not cache.valid_BxM[:, int(cache.index) :].any()
  (new_keys, new_values), kept = cache.layers[0], np.asarray(cache.valid_BxM)
  for row in range(3):
    np.testing.assert_allclose(new_keys[row][..., kept[row]], keys[row][..., valid[row]], rtol=1e-6)
    np.testing.assert_allclose(new_values[row][:, kept[row]], values[row][:, valid[row]], rtol=1e-6)
    assert cache.positions_BxM[row][kept[row]].tolist() == positions[row][valid[row]].tolist()


def test_what_cannot_draft_is_refused():
  model = tiny_decoder()
  for draft, changes, message in (
    (tiny_decoder(vocabulary=60), {}, "60 token ids and the model 50"),
    (tiny_task("LSTM").model, {}, "not a decoder with attention"),
    (model, dict(count=0), "at least 1 token"),
    (model, dict(sampling=Sampling(repetition_penalty=2.0)), "repetition penalty"),
  ):
    with pytest.raises(UserError, match=message):
      SpeculativeSampler(model, draft, 16, **changes)
