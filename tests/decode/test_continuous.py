"""Continuous batching: prompts that take the rows of others have the continuations that they have alone."""

import jax
import numpy as np
import pytest

from lmjax.decode import continuous, shared_prefix
from lmjax.decode.continuous import ContinuousSampler
from lmjax.decode.logits import Sampling
from lmjax.decode.sample import Sampler
from lmjax.testing import fake_batch, init_params
from lmjax.utils.errors import UserError
from tests.families import tiny_task

RNG = np.random.default_rng(0)
PROMPTS = [[int(i) for i in RNG.integers(1, 60, size)] for size in (3, 21, 1, 7, 2, 18, 5, 4, 9, 1, 30, 8, 2, 2, 6, 11)]
NEW = 12
ENDS = tuple(range(3, 60, 7))  # so many that texts end early, at different lengths


def made(kind, **changes):
  task = tiny_task(kind, length=64, **changes)
  params = init_params(task, fake_batch(task))["model"]
  # Large, so that a lost token changes what is drawn; with 4 an LSTM would be chaotic: an error of 1e-7 becomes 0.6.
  return task.model, jax.tree.map(lambda x: (2 if kind == "LSTM" else 4) * x, params)


def together(sampler, params, prompts, rows=3, every=2, new=NEW, **options):
  """Returns the continuation of each prompt."""
  drawn, over = [[] for _ in prompts], set()
  seeds = list(range(len(prompts)))
  for number, tokens, last in sampler.continue_all(
    sampler.prepare(params), prompts, new, seeds, rows, every, **options
  ):
    assert number not in over
    drawn[number] += [int(token) for token in tokens]
    over |= {number} if last else set()
  assert "stopped" in options or over == set(range(len(prompts)))
  return drawn


def alone(sampler, params, prompts, sources=None, new=NEW):
  """Returns the continuation of each prompt, computed by itself."""
  prepared, drawn = sampler.prepare(params), []
  for seed, prompt in enumerate(prompts):
    source = None if sources is None else [sources[seed]]
    parts = sampler.tokens(prepared, [prompt], new, [seed], new, source)
    drawn.append([int(token) for token in np.concatenate(list(parts), axis=1)[0] if token >= 0])
  return drawn


@pytest.mark.parametrize("kind", ["GPT", "Llama", "LSTM", "T5"])
def test_continuations_are_those_of_each_prompt_alone(kind):
  model, params = made(kind)
  assert continuous.able(model)
  sampling = Sampling(temperature=0.9, repetition_penalty=1.2)
  sources = PROMPTS if kind == "T5" else None
  prompts = [[1]] * len(PROMPTS) if kind == "T5" else PROMPTS
  expected = alone(Sampler(model, 64, sampling, ENDS), params, prompts, sources)
  assert {len(tokens) for tokens in expected} > {NEW}, "some end before the others, some are cut off"
  sampler = ContinuousSampler(model, 64, sampling, ENDS)
  assert together(sampler, params, prompts, sources=sources) == expected


@pytest.mark.parametrize("order", [None, len])
def test_slots_are_used_again(order, monkeypatch):
  """Also where the longest prompts come last, when there were only short ones between two moves."""
  moved, move = [], continuous._move_back
  monkeypatch.setattr(continuous, "_move_back", lambda state, unused: moved.append(unused) or move(state, unused))
  model, params = made("Llama", window=9)
  prompts = sorted(PROMPTS * 3, key=order) if order else PROMPTS * 3
  expected = alone(Sampler(model, 64, Sampling(), ENDS), params, prompts)
  assert together(ContinuousSampler(model, 64, Sampling(), ENDS), params, prompts) == expected
  assert len(moved) > 1 and min(moved) > 0


def test_a_long_text_outlives_several_moves():
  model, params = made("Llama")
  prompts = [prompt[:4] for prompt in PROMPTS] * 3
  expected = alone(Sampler(model, 64, Sampling(), (3, 4)), params, prompts, new=45)
  assert sum(len(tokens) == 45 for tokens in expected) > 5 and sum(len(tokens) < 45 for tokens in expected) > 5
  assert together(ContinuousSampler(model, 64, Sampling(), (3, 4)), params, prompts, new=45) == expected


def test_what_all_begin_with_is_read_once(monkeypatch):
  monkeypatch.setattr(shared_prefix, "LEAST", 4)
  model, params = made("Llama")
  prompts, read = [[7, 7, 5, 3, 2, 9, *prompt] for prompt in PROMPTS], []
  real = continuous.prefill
  monkeypatch.setattr(continuous, "prefill", lambda *args: read.append(args[2].shape) or real(*args))
  expected = alone(Sampler(model, 64, Sampling(), ENDS), params, prompts)
  assert together(ContinuousSampler(model, 64, Sampling(), ENDS), params, prompts) == expected
  assert read == [(1, 6)]


def test_a_text_that_has_stopped_gives_its_row_away():
  model, params = made("GPT")
  whole = together(ContinuousSampler(model, 64), params, PROMPTS)
  stopped = together(ContinuousSampler(model, 64), params, PROMPTS, stopped=lambda number: number % 2 == 0)
  for number, (tokens, all_tokens) in enumerate(zip(stopped, whole, strict=True)):
    assert tokens == (all_tokens if number % 2 else all_tokens[:1])


def test_prompts_that_do_not_fit_are_refused_before_any_is_read():
  model, params = made("GPT")
  sampler = ContinuousSampler(model, 64)
  for prompts, reason in (([[1], []], "has no tokens"), ([[1], [1] * 60], "exceed the model's maximum of 64")):
    with pytest.raises(UserError, match=reason):
      together(sampler, params, prompts)


def test_few_lengths_of_prompts_are_compiled():
  assert [continuous._round_up(length) for length in (1, 16, 17, 40, 65, 100)] == [16, 16, 32, 48, 96, 128]


def test_models_whose_prompts_depend_on_what_follows_are_not_able():
  assert not continuous.able(made("Llama", prefix=True)[0])
