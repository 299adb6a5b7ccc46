"""Beam search against exhaustive search and greedy decoding, for each model family."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lmjax.data.tokenizers.base import Bytes
from lmjax.decode.beam import Beam
from lmjax.decode.logits import Sampling
from lmjax.decode.sample import Sampler
from lmjax.inference.stream_text import beam_texts
from lmjax.models import encoder_decoder, recurrent
from lmjax.models.encoder_decoder import EncoderDecoder
from lmjax.models.recurrent import Recurrent
from lmjax.testing import init_params, tiny_decoder

WORDS, END, NEW = 4, 3, 4


def family(name: str):
  """Returns a model, its parameters, and a source for an encoder-decoder."""
  ids = jnp.zeros((1, 4), jnp.int32)
  if name == "decoder":
    model, batch = tiny_decoder(vocabulary=WORDS), {"inputs": ids}
  elif name == "recurrent":
    model, batch = Recurrent(recurrent.Config(WORDS, 16, width=16, cells=16)), {"inputs": ids}
  else:
    shape = dict(vocabulary=WORDS, length=8, width=16, depth=2, heads=2, head_size=8, mlp=32)
    model, batch = EncoderDecoder(encoder_decoder.Config(**shape)), {"inputs": ids, "decoder_inputs": ids}
  params = init_params(model, batch, seed=1)["params"]
  params = jax.tree.map(lambda p: 4 * p if p.ndim > 1 else p, params)  # for larger differences between tokens
  return model, params, None if name != "encdec" else [1, 2, 0, 1]


def exhaustive(model, params, prompt, source, penalty):
  """Returns every continuation with its score, best first."""
  continuations = np.array(list(itertools.product(range(WORDS), repeat=NEW)))
  count = len(continuations)
  rows = jnp.concatenate([jnp.tile(jnp.array(prompt), (count, 1)), continuations], axis=1)
  batch = {"inputs": rows}
  if source is not None:
    batch = {"inputs": jnp.tile(jnp.array(source), (count, 1)), "decoder_inputs": rows}
  hidden = model.apply({"params": params}, batch)
  log_probs = jax.nn.log_softmax(model.apply({"params": params}, hidden.tokens, method="logits"))
  scores = {}
  for tokens, row in zip(continuations.tolist(), np.asarray(log_probs, np.float64), strict=True):
    tokens = tokens[: tokens.index(END) + 1] if END in tokens else tokens
    total = sum(row[len(prompt) - 1 + i, token] for i, token in enumerate(tokens))
    scores[tuple(tokens)] = total / ((5 + len(tokens)) / 6) ** penalty
  return sorted(scores.items(), key=lambda item: -item[1])


@pytest.mark.parametrize(("name", "penalty"), [("decoder", 0.6), ("recurrent", 0.0), ("encdec", 1.0)])
def test_with_enough_beams_it_is_exhaustive_search(name, penalty):
  model, params, source = family(name)
  wanted = exhaustive(model, params, [1], source, penalty)
  beam = Beam(model, 16, beams=WORDS ** (NEW - 1), penalty=penalty, end=END)
  tokens, scores = beam.search(beam.prepare(params), [[1]], NEW, None if source is None else [source])
  expected = dict(wanted)
  np.testing.assert_allclose(scores[0, :20], [score for _, score in wanted[:20]], atol=1e-4)
  for row, score in zip(tokens[0, :20], scores[0], strict=False):  # continuations with equal scores have no order
    assert score == pytest.approx(expected[tuple(t for t in row.tolist() if t >= 0)], abs=1e-4)


@pytest.mark.slow
def test_more_beams_are_not_worse_and_rows_are_independent():
  model, params, _ = family("decoder")
  prompts = [[1, 2], [0], [2, 2, 1]]
  best = []
  for size in (1, 2, 4, 16):
    beam = Beam(model, 16, size, penalty=0.0, end=END)
    tokens, scores = beam.search(params, prompts, 6)
    best.append(scores[:, 0])
    alone, score = beam.search(params, prompts[2:], 6)
    assert np.array_equal(alone[0], tokens[2])
    np.testing.assert_allclose(score[0], scores[2], atol=1e-4)
  assert (best[-1] >= best[0] - 1e-5).all()


def test_excluded_ids_are_in_no_continuation_and_the_others_keep_their_scores():
  model, params, _ = family("decoder")
  wanted = exhaustive(model, params, [1], None, 0.6)
  excluded = wanted[0][0][0]
  assert excluded != END
  allowed = [(tokens, score) for tokens, score in wanted if excluded not in tokens][:10]
  beam = Beam(model, 16, WORDS ** (NEW - 1), penalty=0.6, end=END, excluded=(excluded,))
  tokens, scores = beam.search(params, [[1]], NEW)
  np.testing.assert_allclose(scores[0, :10], [score for _, score in allowed], atol=1e-4)
  assert not any(excluded in row for row in tokens[0, :10].tolist())


def test_one_beam_is_greedy():
  model, params, _ = family("decoder")
  sampler = Sampler(model, 16, Sampling(temperature=0.0), END)
  greedy = np.concatenate(list(sampler.tokens(params, [[1]], 6, [0])), axis=1)
  tokens, _ = Beam(model, 16, 1, penalty=0.0, end=END).search(params, [[1]], 6)
  assert tokens[0, 0][: greedy.shape[1]].tolist() == greedy[0].tolist()


def test_beam_texts_returns_every_beam():
  model = tiny_decoder(vocabulary=257)
  params = init_params(model, {"inputs": jnp.zeros((1, 4), jnp.int32)})["params"]
  texts = beam_texts(Beam(model, 16, 3, end=256), params, Bytes(), ["ab", "c"], 4)
  assert [len(beams) for beams in texts] == [3, 3]
