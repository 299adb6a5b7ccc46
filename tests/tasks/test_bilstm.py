"""ELMo's tagger: a bidirectional LSTM on a mix of layers, with the paper's penalty on the weights of the mix."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lmjax.models.tagger import BiLSTMTagger
from lmjax.optim import Optimizer
from lmjax.tasks.base import weighted_sum
from lmjax.tasks.bilstm_tagging import BiLSTMTagging
from lmjax.testing import fake_batch, init_params
from lmjax.utils.errors import UserError
from lmjax.utils.metrics import add
from tests.families import tiny_task

LABELS = ("O", "B-X", "I-X")
TAGGER = BiLSTMTagger(3, 5)


@pytest.fixture(scope="module")
def params():
  rng = np.random.default_rng(0)
  made = init_params(TAGGER, jnp.zeros((1, 1, 4)))["params"]
  return jax.tree.map(lambda p: p + 0.3 * rng.standard_normal(p.shape).astype(np.float32), made)


def scores(params, x, segments):
  return np.asarray(TAGGER.apply({"params": params}, jnp.asarray(x), jnp.asarray(segments)))


def test_packing_and_padding_do_not_change_scores(params):
  rng = np.random.default_rng(1)
  x = rng.standard_normal((1, 9, 4)).astype(np.float32)
  packed = scores(params, x, [[1, 1, 1, 2, 2, 3, 3, 3, 0]])[0]
  for part, number in ((slice(0, 3), 1), (slice(3, 5), 2), (slice(5, 8), 3)):
    alone = scores(params, x[:, part], np.full((1, part.stop - part.start), number))[0]
    np.testing.assert_allclose(packed[part], alone, atol=1e-5)
    np.testing.assert_allclose(scores(params, x[:, part], [[1] * len(alone)])[0], alone, atol=1e-5)


def test_a_score_depends_on_all_words_of_its_segment_and_no_other(params):
  x, segments = jnp.asarray(np.random.default_rng(2).standard_normal((1, 7, 4)), jnp.float32), [[1, 1, 1, 2, 2, 2, 0]]
  function = lambda x: TAGGER.apply({"params": params}, x, jnp.asarray(segments))[0].sum(-1)  # noqa: E731
  depends = np.abs(np.asarray(jax.jacobian(function)(x))[:, 0]).max(-1) > 1e-7
  expected = (np.equal.outer(segments[0], segments[0]) & (np.array(segments[0]) > 0)).astype(bool)
  assert np.array_equal(depends[:6, :6], expected[:6, :6]) and not depends[:6, 6].any()


@pytest.mark.parametrize("family", ["BERT", "ELMo"])
def test_the_loss_and_its_penalty(family):
  elmo = family == "ELMo"
  task = BiLSTMTagging(
    tiny_task(family).model, dropout=0.0, characters=8, labels=LABELS, cells=6, mix_penalty=0.3 * elmo
  )
  batch = fake_batch(task, 4, 8)
  rng = np.random.default_rng(0)
  params = jax.tree.map(lambda p: p + 0.1 * rng.standard_normal(p.shape).astype(np.float32), init_params(task, batch))
  terms = jax.jit(lambda params, batch: task.loss(params, {}, {}, batch)[0])
  whole, found = terms(params, batch), jax.jit(task.forward)(params, batch).logits
  assert found.shape == (4, 8, 3) and found.dtype == jnp.float32
  loss = weighted_sum(task, whole, task.counts(batch))
  penalty = 0.3 * float(jnp.sum(params["heads"]["mix"]["weights"] ** 2)) if elmo else 0.0
  np.testing.assert_allclose(loss, whole["loss"].value() + penalty, rtol=1e-5)
  parts = [terms(params, {key: value[i::2] for key, value in batch.items()}) for i in range(2)]
  np.testing.assert_allclose(weighted_sum(task, add(*parts), task.counts(batch)), loss, rtol=1e-4)
  gradient = jax.jit(jax.grad(lambda p: weighted_sum(task, terms(p, batch), task.counts(batch))))(params)
  assert all(np.abs(leaf).max() > 0 for leaf in jax.tree.leaves(gradient["heads"]))


def test_what_has_no_effect_or_no_equivalent_is_refused(tmp_path):
  from lmjax.storage.huggingface.save import save

  bert = tiny_task("BERT").model
  with pytest.raises(ValueError, match="mix_penalty is for an ELMo"):
    BiLSTMTagging(bert, labels=LABELS, mix_penalty=0.1)
  with pytest.raises(ValueError, match="cells is at least 1"):
    BiLSTMTagging(bert, labels=LABELS, cells=0)
  task = BiLSTMTagging(bert, labels=LABELS, cells=6)
  with pytest.raises(UserError, match="the head 'tagger' has no Hugging Face equivalent"):
    save(tmp_path / "hf", bert, init_params(task, fake_batch(task)))


def test_dropout_is_for_training_alone():
  task = BiLSTMTagging(tiny_task("BERT").model, dropout=0.5, labels=LABELS, cells=6)
  batch = fake_batch(task, 2, 8)
  params = init_params(task, batch)
  run = jax.jit(lambda rng: task.forward(params, batch, rng=rng).logits)
  assert not np.array_equal(run(jax.random.key(0)), run(jax.random.key(1)))
  assert np.array_equal(task.forward(params, batch).logits, task.forward(params, batch).logits)
  assert Optimizer(frozen=("^model/",)).frozen == ("^model/",)
