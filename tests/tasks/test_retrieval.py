"""A retriever: its loss is a softmax over the paragraphs of the whole batch; what a hard negative is."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lmjax import config, experiment
from lmjax.data.objectives.retrieval import Retrieval as Rows
from lmjax.data.sources.examples import Question
from lmjax.data.tokenizers.registry import TokenizerConfig
from lmjax.data.tokenizers.words import Words
from lmjax.tasks.retrieval import Retrieval
from lmjax.testing import init_params
from lmjax.utils.errors import UserError
from tests.families import tiny_task

pytest.importorskip("bm25s", reason="needs pip install -e '.[retrieval]'")
WORDS = Words(("<S>", "</S>", "<unk>", *map(chr, range(97, 123))), "spaces")
QUESTIONS = [
  Question("0", "a b", "c d e a", (("c", 0),)), Question("1", "e e", "c d e a", (("d", 2),)),
  Question("2", "f a", "g f h", (("g", 0),)), Question("3", "x", "y e", (("y", 0),)),
]  # fmt: skip


def rows_of(task, length=24, questions=QUESTIONS):
  tokenizer = TokenizerConfig("bytes")
  return Rows(questions, questions, length, tokenizer, question_length=6, negatives=task.negatives)


@pytest.fixture(scope="module")
def given():
  task = Retrieval(tiny_task("BERT").model, dropout=0.0, negatives=2, temperature=0.3)
  (batch,) = rows_of(task).for_model(task.model).validate(WORDS, 5)
  batch = {key: jnp.asarray(batch[key]) for key in task.spec(1, 1)}
  params = init_params(task, batch)
  rng = np.random.default_rng(0)
  return task, batch, jax.tree.map(lambda p: p + 0.1 * rng.standard_normal(p.shape).astype(np.float32), params)


def test_the_loss_is_a_softmax_over_the_paragraphs_of_the_batch(given):
  """Of a batch with a paragraph twice, rows with fewer negatives, and a row of padding."""
  task, batch, params = given
  x = np.asarray(jax.jit(task.forward)(params, batch).logits, np.float64)
  texts = [
    [tuple(ids[segments == s]) for s in range(1, 5)]
    for ids, segments in zip(np.asarray(batch["inputs"]), np.asarray(batch["segments"]), strict=True)
  ]
  assert texts[4] == [(), (), (), ()] and len({own[1] for own in texts}) == 4  # one twice, one empty
  nll, correct = [], []
  for b in range(4):
    right = np.exp(x[b, 0] @ x[b, 1] / 0.3)
    others = [
      np.exp(x[b, 0] @ x[c, k] / 0.3)
      for c in range(5) for k in (1, 2, 3) if texts[c][k] and texts[c][k] != texts[b][1]
    ]  # fmt: skip
    nll.append(np.log(right + sum(others)) - np.log(right))
    correct.append(right > max(others))
  loss = jax.jit(lambda params: task.loss(params, {}, {}, batch)[0])
  terms = loss(params)
  np.testing.assert_allclose(terms["loss"].total, np.sum(nll), rtol=1e-4)
  assert terms["accuracy"].total == sum(correct) and terms["loss"].count == task.counts(batch)["loss"] == 4
  gradient = jax.jit(jax.grad(lambda params: task.loss(params, {}, {}, batch)[0]["loss"].total))(params)
  assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradient))


def test_a_segment_has_the_vector_of_its_text_alone(given):
  """Neither what else is in a row nor padding changes it."""
  task, batch, params = given
  vectors = np.asarray(jax.jit(task.forward)(params, batch).logits)
  alone = {key: np.zeros_like(value) for key, value in batch.items()}
  for row in range(4):
    own = np.asarray(batch["segments"][row]) == 2
    for key in ("inputs", "positions", "token_types"):
      alone[key][row, : own.sum()] = batch[key][row][own]
    alone["segments"][row, : own.sum()] = 1
  np.testing.assert_allclose(jax.jit(task.forward)(params, alone).logits[:4, 0], vectors[:4, 1], atol=2e-6)


def test_a_hard_negative_has_words_of_the_question_and_no_answer():
  data = rows_of(Retrieval(tiny_task("BERT").model, negatives=2))
  documents = data.documents(QUESTIONS, WORDS, None, 1)
  assert documents.negatives(QUESTIONS[0], 2) == []  # the other paragraphs share no word
  assert documents.negatives(QUESTIONS[1], 2) == ["y e"] and documents.negatives(QUESTIONS[2], 2) == ["c d e a"]
  answered = QUESTIONS[1]._replace(answers=(("Y", 0),))
  assert documents.negatives(answered, 2) == []
  (row,), _ = documents.encode_text(QUESTIONS[2])
  assert sorted(set(row["segments"])) == [1, 2, 3] and len(row["inputs"]) <= 24


def test_microbatches_are_refused():
  with pytest.raises(UserError, match="optim.microbatches must be 1 .* compare the rows of a batch"):
    experiment.build(config.load("configs/retriever.py:debug", {"optim.microbatches": "2"}))
