"""Beam search: with beams enough it is exhaustive search; one implementation for every family."""

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
  """Returns a model, its parameters, and the source it reads, if it reads one."""
  ids = jnp.zeros((1, 4), jnp.int32)
  if name == "decoder":
    model, given = tiny_decoder(vocabulary=WORDS), (ids,)
  elif name == "recurrent":
    model, given = Recurrent(recurrent.Config(WORDS, 16, width=16, cells=16)), (ids,)
  else:
    shape = dict(vocabulary=WORDS, length=8, width=16, depth=2, heads=2, head_size=8, mlp=32)
    model, given = EncoderDecoder(encoder_decoder.Config(**shape)), (ids, ids)
  params = init_params(model, *given, seed=1)["params"]
  params = jax.tree.map(lambda p: 4 * p if p.ndim > 1 else p, params)  # untrained models hardly prefer anything
  return model, params, None if name != "encdec" else [1, 2, 0, 1]


def exhaustive(model, params, prompt, source, penalty):
  """Returns every continuation with its score, best first."""
  texts = np.array(list(itertools.product(range(WORDS), repeat=NEW)))
  rows = jnp.concatenate([jnp.tile(jnp.array(prompt), (len(texts), 1)), texts], axis=1)
  given = (rows,) if source is None else (jnp.tile(jnp.array(source), (len(texts), 1)), rows)
  hidden, _ = model.apply({"params": params}, *given)
  odds = jax.nn.log_softmax(model.apply({"params": params}, hidden, method="logits"))
  found = {}
  for text, row in zip(texts.tolist(), np.asarray(odds, np.float64), strict=True):
    text = text[: text.index(END) + 1] if END in text else text
    total = sum(row[len(prompt) - 1 + i, token] for i, token in enumerate(text))
    found[tuple(text)] = total / ((5 + len(text)) / 6) ** penalty
  return sorted(found.items(), key=lambda item: -item[1])


@pytest.mark.parametrize(("name", "penalty"), [("decoder", 0.6), ("recurrent", 0.0), ("encdec", 1.0)])
def test_with_beams_enough_it_is_exhaustive_search(name, penalty):
  model, params, source = family(name)
  wanted = exhaustive(model, params, [1], source, penalty)
  beam = Beam(model, 16, beams=WORDS ** (NEW - 1), penalty=penalty, end=END)
  texts, scores = beam.search(beam.prepare(params), [[1]], NEW, None if source is None else [source])
  scored = dict(wanted)
  np.testing.assert_allclose(scores[0, :20], [score for _, score in wanted[:20]], atol=1e-4)
  for row, found in zip(
    texts[0, :20], scores[0], strict=False
  ):  # by their own scores: some texts are as good as others
    assert found == pytest.approx(scored[tuple(t for t in row.tolist() if t >= 0)], abs=1e-4)


def test_more_beams_find_no_worse_and_rows_do_not_matter_to_each_other():
  model, params, _ = family("decoder")
  prompts = [[1, 2], [0], [2, 2, 1]]
  best = []
  for size in (1, 2, 4, 16):
    beam = Beam(model, 16, size, penalty=0.0, end=END)
    texts, scores = beam.search(params, prompts, 6)
    best.append(scores[:, 0])
    alone, score = beam.search(params, prompts[2:], 6)
    assert np.array_equal(alone[0], texts[2])
    np.testing.assert_allclose(score[0], scores[2], atol=1e-4)
  assert (best[-1] >= best[0] - 1e-5).all()


def test_one_beam_is_greedy():
  model, params, _ = family("decoder")
  sampler = Sampler(model, 16, Sampling(temperature=0.0), END)
  greedy = np.concatenate(list(sampler.tokens(params, [[1]], 6, [0])), axis=1)
  texts, _ = Beam(model, 16, 1, penalty=0.0, end=END).search(params, [[1]], 6)
  assert texts[0, 0][: greedy.shape[1]].tolist() == greedy[0].tolist()


def test_texts_come_best_first():
  model = tiny_decoder(vocabulary=257)
  params = init_params(model, jnp.zeros((1, 4), jnp.int32))["params"]
  found = beam_texts(Beam(model, 16, 3, end=256), params, Bytes(), ["ab", "c"], 4)
  assert [len(texts) for texts in found] == [3, 3]
