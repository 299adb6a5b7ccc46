"""Loss and perplexity over validation data, against the whole data in one batch."""

import math

import numpy as np
import pytest

from lmjax import config, experiment
from lmjax.evals.base import Context
from lmjax.evals.perplexity import Perplexity
from lmjax.evals.terms import sum_terms
from lmjax.evals.validation_loss import ValidationLoss
from lmjax.parallel.sharding import use_layout


@pytest.fixture(scope="module")
def run():
  settings = config.load("configs/bert.py:debug", {"data.length": "32"})
  return experiment.build(settings)


def context(run, batch=4, frozen=None):
  return Context(run.task, run.data, run.tokenizer, batch, run.layout, frozen or {})


def test_the_loss_is_the_sum_of_the_terms_and_does_not_depend_on_the_batch(run):
  with use_layout(run.layout):
    params = run.state().params
    scores = ValidationLoss().prepare(context(run))(params)
    whole = ValidationLoss().prepare(context(run, batch=7))(params)
  assert set(scores) == {"loss", "masked_lm", "masked_accuracy", "next_sentence", "next_accuracy"}
  assert scores["loss"] == scores["masked_lm"] + scores["next_sentence"], "metrics are not summed"
  assert scores == pytest.approx(whole, rel=1e-5)


def test_frozen_models_reach_the_task(run):
  class Shifted:
    """A task whose loss is that of the run plus a frozen constant."""

    reads, initial_carry = run.task.reads, run.task.initial_carry

    def loss(self, params, frozen, carry, batch):
      terms, carry = run.task.loss(params, {}, carry, batch)
      return {"masked_lm": terms["masked_lm"].replace(total=terms["masked_lm"].total + frozen["shift"])}, carry

  shifted = Context(Shifted(), run.data, run.tokenizer, 4, run.layout, {"shift": np.float32(100)})
  batches = run.data.validate(run.tokenizer, 4, 3)
  with use_layout(run.layout):
    params = run.state().params
    plain, moved = (sum_terms(c, batches)(params)["masked_lm"] for c in (context(run), shifted))
  assert float(moved.total) == pytest.approx(float(plain.total) + 3 * 100, rel=1e-5)


def test_perplexity_and_bits_per_byte_have_one_total():
  run = experiment.build(config.load("configs/quickstart.py:debug"))
  with use_layout(run.layout):
    params = run.state().params
    scores = Perplexity(steps=2).prepare(context(run))(params)
    batches = run.data.validate(run.tokenizer, 4, 2)
    nll = sum_terms(context(run), batches)(params)["nll"]
  assert scores["loss"] == pytest.approx(float(nll.total) / float(nll.count))
  assert scores["perplexity"] == pytest.approx(math.exp(scores["loss"]))
  text_bytes = sum(batch["bytes"].sum() for batch in batches)
  assert scores["bits_per_byte"] == pytest.approx(float(nll.total) / math.log(2) / text_bytes)
