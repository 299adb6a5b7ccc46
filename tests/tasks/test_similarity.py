"""The cosine of two texts: its loss, its rows, and what it refuses."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lmjax.data.objectives.similarity import Similarity as Rows
from lmjax.data.sources.examples import Example
from lmjax.data.tokenizers.registry import TokenizerConfig
from lmjax.data.tokenizers.words import Words
from lmjax.inference.predict import Text, make_predictor
from lmjax.tasks.retrieval import Retrieval
from lmjax.tasks.similarity import Similarity
from lmjax.testing import init_params
from lmjax.utils.errors import UserError
from tests.families import tiny_task

WORDS = Words(("<S>", "</S>", "<unk>", *map(chr, range(97, 123))), "spaces")
PAIRS = [("a b", "c d e", "4.5"), ("e e", "e e", "0"), ("f", "g f h", "2")]


def batch_of(task, pairs=PAIRS, length=16):
  examples = [Example(*pair, str(i)) for i, pair in enumerate(pairs)]
  data = Rows(examples, examples, length, TokenizerConfig("bytes"))
  (batch,) = data.for_model(task.model).validate(WORDS, 4)
  return {key: jnp.asarray(batch[key]) for key in task.spec(1, 1)}


@pytest.fixture(scope="module", params=["BERT", "GPT"])
def given(request):
  task = Similarity(tiny_task(request.param).model, dropout=0.0, highest=5.0)
  batch = batch_of(task)
  rng = np.random.default_rng(0)
  params = jax.tree.map(lambda p: p + 0.1 * rng.standard_normal(p.shape).astype(np.float32), init_params(task, batch))
  return task, batch, params


def test_the_loss_is_that_of_the_cosine_of_the_means_of_each_text_alone(given):
  """Each text is read without the other: its vector is that of a row that has nothing else."""
  task, batch, params = given
  hidden, cosines = jax.jit(lambda b: task.forward(params, b).hidden), {}
  for row in range(3):
    means = []
    for segment in (1, 2):
      own = np.asarray(batch["segments"][row]) == segment
      alone = {key: np.asarray(value[row])[own][None] for key, value in batch.items() if np.ndim(value) > 1}
      alone["segments"] = np.ones_like(alone["segments"])
      means.append(np.asarray(hidden(alone), np.float64)[0].mean(0))
    cosines[float(batch["values"][row])] = means[0] @ means[1] / np.prod([np.linalg.norm(m) for m in means])
  (terms, _) = jax.jit(lambda: task.loss(params, {}, {}, batch))()
  expected = sum((5 * cosine - value) ** 2 for value, cosine in cosines.items())
  assert float(terms["loss"].count) == 3  # and none of the row of padding
  np.testing.assert_allclose(float(terms["loss"].total), expected, rtol=2e-5)
  assert abs(cosines[0.0] - 1) < 1e-5 and min(cosines.values()) < 0.99  # the same text twice


def test_padding_and_its_gradients_are_finite(given):
  task, batch, params = given
  gradient = jax.jit(jax.grad(lambda p: task.loss(p, {}, {}, batch)[0]["loss"].total))(params)
  assert all(bool(jnp.isfinite(leaf).all()) for leaf in jax.tree.leaves(gradient))


def test_what_cannot_be_compared_is_refused(given):
  task = given[0]
  with pytest.raises(ValueError, match="above 0"):
    Similarity(task.model, highest=0.0)
  with pytest.raises(ValueError, match="no labels"):
    Similarity(task.model, labels=("a", "b"))
  with pytest.raises(ValueError, match="a similarity is a number"):
    Rows([], [], 16, TokenizerConfig("bytes"), regression=False)
  with pytest.raises(UserError, match="no example to validate"):
    batch_of(task, [("a", None, "1")])


def test_predictions_want_two_texts_and_a_retriever_has_none(given):
  task = given[0]
  data = Rows([], [], 16, TokenizerConfig("bytes")).for_model(task.model)
  run = types.SimpleNamespace(task=task, tokenizer=WORDS, run=types.SimpleNamespace(data=data))
  predictor = make_predictor(run, "run")
  assert predictor.head == "sequence" and predictor.arrangement("a", "b")["segments"].max() == 2
  with pytest.raises(UserError, match="each text needs the other"):
    predictor([Text("a", "b"), Text("a")])
  run.task = Retrieval(task.model)
  with pytest.raises(UserError, match="gives vectors, and no label"):
    make_predictor(run, "run")
