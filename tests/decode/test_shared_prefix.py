"""What prompts begin with is read once: the same vectors as when every row reads it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lmjax.decode import shared_prefix
from lmjax.decode.logits import Sampling
from lmjax.decode.sample import Sampler, pad_prompts, prefill
from lmjax.decode.shared_prefix import PrefixSampler, common, few
from lmjax.testing import fake_batch, init_params
from tests.families import tiny_task

FIRST = [3, 1, 4, 1, 5, 9, 2, 6]
PROMPTS = [[*FIRST, 5, 3, 5, 8, 9, 7, 9, 3], [*FIRST, 4], [*FIRST, 6, 2, 6, 4]]
KINDS = {"GPT": {}, "Llama": {}, "window": {"window": 5}, "LSTM": {}}


def made(kind):
  task = tiny_task("GPT" if kind == "window" else kind, length=40, **KINDS[kind])
  return task.model, init_params(task, fake_batch(task))["model"]


@pytest.fixture
def short(monkeypatch):
  """Prefixes of four tokens are shared, and prompts are read in parts of three."""
  monkeypatch.setattr(shared_prefix, "LEAST", 4)
  monkeypatch.setattr(shared_prefix, "PART", 3)


@pytest.mark.parametrize("kind", KINDS)
def test_vectors_and_cache_are_those_of_whole_prompts(kind, short):
  """The next vectors too, which read the cache; whatever columns the rows begin at."""
  model, params = made(kind)
  tokens, valid = pad_prompts(PROMPTS, 4, 40)
  sampler = PrefixSampler(model, 40, shared=6)
  whole = prefill(model, params, tokens, valid, 30, None)
  shared = jax.jit(lambda params: sampler._read(params, tokens, valid, 30, None))(params)
  np.testing.assert_allclose(shared[0][:, -1], whole[0][:, -1], rtol=2e-5, atol=2e-5)
  after = jnp.asarray([[7], [8], [9]]), jnp.ones((3, 1), bool)
  later = [model.apply({"params": params}, cache, *after, method="extend")[0] for _, cache in (shared, whole)]
  np.testing.assert_allclose(*later, rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("kind", ["Llama"])
def test_continuations_are_the_same_and_the_prefix_is_read_once(kind, short, monkeypatch):
  model, params = made(kind)
  read, rows = shared_prefix.prefill, []
  monkeypatch.setattr(shared_prefix, "prefill", lambda *args: rows.append(args[2].shape) or read(*args))
  alone = Sampler(model, 40, Sampling(temperature=0.8))
  together = PrefixSampler(model, 40, Sampling(temperature=0.8))
  draw = lambda s, p: np.concatenate(list(s.tokens(s.prepare(params), p, 8, list(range(len(p))), 3)), axis=1)  # noqa: E731
  np.testing.assert_array_equal(draw(together, PROMPTS), draw(alone, PROMPTS))
  np.testing.assert_array_equal(draw(together, PROMPTS[:1] * 5), draw(alone, PROMPTS[:1] * 5))
  assert rows == [(1, 8), (1, 12)]
  draw(together, PROMPTS[:1]), draw(together, [[1, 2, 3, 4, 5], [2, 2, 3, 4, 5]])
  assert len(rows) == 2, "one prompt, or prompts that begin differently, are read as they are"


def test_how_much_is_shared():
  assert [common(p) for p in ([[1, 2, 3]], [[1, 2], [1, 2]], [[1, 2, 3], [1, 2]], [[1, 2], [3, 2]], [[], [1]])] == [
    0, 1, 1, 0, 0,
  ]  # fmt: skip
  assert [few(n) for n in (0, 63, 64, 95, 96, 127, 128, 191, 192, 1000)] == [0, 0, 64, 64, 96, 96, 128, 128, 192, 768]
