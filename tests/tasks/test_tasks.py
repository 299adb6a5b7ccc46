"""What holds for all tasks: log-probabilities are those of the loss, coefficients weigh terms, configs name heads."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lmjax import config
from lmjax.compression.base import Identity
from lmjax.models.recurrent import Config, Recurrent
from lmjax.optim import Optimizer
from lmjax.parallel.mesh import MeshShape
from lmjax.parallel.sharding import Layout
from lmjax.tasks.base import weighted_sum
from lmjax.tasks.continued_lm import ContinuedLM
from lmjax.tasks.encode import Encode
from lmjax.tasks.masked_lm import MaskedLM
from lmjax.testing import fake_batch, init_params, init_state
from lmjax.train import make_step
from lmjax.utils.errors import UserError
from lmjax.utils.metrics import Mean
from tests.families import FAMILIES, tiny_task

TASKS = {name: lambda name=name: tiny_task(name) for name in FAMILIES} | {
  "continued": lambda: ContinuedLM(Recurrent(Config(vocabulary=50, length=16, width=32, cells=32))),
}


def parameters(task, batch):
  """Returns parameters that are not at their special initial values."""
  rng = np.random.default_rng(0)
  return jax.tree.map(lambda p: p + 0.1 * rng.standard_normal(p.shape).astype(np.float32), init_params(task, batch))


@pytest.mark.parametrize("name", TASKS)
def test_log_probs_are_those_of_the_scores_and_of_the_loss(name):
  task = TASKS[name]()
  batch = fake_batch(task)
  if name == "ELMo":
    batch |= {"weights": batch["weights"] * jnp.array([1.0, 0.5, 2.0, 0.0])[:, None]}
  params = parameters(task, batch)
  log_probs = jax.jit(task.log_probs)(params, batch)
  targets = np.asarray(batch["labels" if "labels" in batch else "targets"])
  assert log_probs.shape == targets.shape and log_probs.dtype == jnp.float32

  logits = np.asarray(task.forward(params, batch).logits, np.float64)
  if "masked_positions" in batch:
    logits = np.take_along_axis(logits, np.asarray(batch["masked_positions"])[..., None], 1)
  expected = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
  expected = np.take_along_axis(expected, targets[..., None], -1)[..., 0]
  real = np.asarray(batch["weights"]) > 0
  np.testing.assert_allclose(np.asarray(log_probs)[real], expected[real], rtol=1e-4)

  def nll(params):
    terms, _ = task.loss(params, {}, task.initial_carry(4), batch)
    return terms[next(iter(task.terms))].total  # the term that predicts tokens; of ELMo, forwards

  def by_log_probs(params):
    return -jnp.sum(batch["weights"] * task.log_probs(params, batch))

  np.testing.assert_allclose(nll(params), -np.sum(np.asarray(batch["weights"]) * expected), rtol=1e-5)
  gradients = (jax.jit(jax.grad(fn))(params) for fn in (nll, by_log_probs))
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=2e-5), *gradients)


def test_a_task_without_tokens_to_predict_has_no_log_probs():
  task = Encode(tiny_task("BERT").model)
  with pytest.raises(NotImplementedError, match="Encode does not predict tokens"):
    task.log_probs({}, {})


@dataclasses.dataclass(frozen=True)
class HalfNextSentence(MaskedLM):
  terms = {"masked_lm": 1.0, "next_sentence": 0.5}


def test_a_coefficient_of_one_half_halves_its_term_in_loss_and_gradient():
  task = tiny_task("BERT")
  half, batch = HalfNextSentence(task.model, max_predictions=4), fake_batch(task)
  optimizer, layout = Optimizer(peak_lr=1e-2), Layout.build(MeshShape().build(jax.devices()[:1]), "ddp")
  state = init_state(task, optimizer.build(10), Identity(), layout, 4, 16, 0)

  def term(name):
    def loss(params):
      terms, _ = task.loss(params, {}, {}, batch, rng=None)
      return terms[name].total / terms[name].count

    return jax.jit(jax.value_and_grad(loss))(state.params)

  (masked, d_masked), (follows, d_follows) = term("masked_lm"), term("next_sentence")
  for owner, coefficient in ((task, 1.0), (half, 0.5)):
    _, metrics = jax.jit(make_step(owner, optimizer.build(10), Identity()))(state, batch, jax.random.key(0))
    np.testing.assert_allclose(metrics["loss"].value(), masked + coefficient * follows, rtol=1e-5)
    np.testing.assert_allclose(metrics["next_sentence"].value(), follows, rtol=1e-5)  # logged as it is
    gradients = zip(jax.tree.leaves(d_masked), jax.tree.leaves(d_follows), strict=True)
    norm = np.sqrt(sum(float(jnp.sum((a + coefficient * b) ** 2)) for a, b in gradients))
    np.testing.assert_allclose(metrics["gradient_norm"], norm, rtol=1e-4)


def test_weighted_sum():
  class Two:
    terms = {"first": 1.0, "second": -0.25}

  terms = {"first": Mean(6.0, 3.0), "second": Mean(8.0, 4.0), "accuracy": Mean(1.0, 2.0)}
  # The counts of the whole batch, not those of the microbatch whose terms these are; metrics are not in the loss.
  assert float(weighted_sum(Two, terms, {"first": 12.0, "second": 16.0})) == 6 / 12 - 0.25 * 8 / 16
  assert float(weighted_sum(Two, terms | {"first": Mean(0.0, 0.0)}, {"first": 0.0, "second": 16.0})) == -0.125
  with pytest.raises(UserError, match="has the terms"):
    weighted_sum(Two, terms, {"accuracy": 2.0})


def test_a_head_named_in_a_config_is_built():
  model = tiny_task("BERT").model
  kind, head = "lmjax.tasks.encode:Encode", dict(kind="lmjax.models.heads:Classifier", classes=3)
  task = config.build(dict(kind=kind, classifier=head), "task", model=model)
  assert task.classifier.classes == 3 and task.heads() == {"sequence": task.classifier}
  batch = fake_batch(task)
  params = init_params(task, batch)
  assert params["heads"]["sequence"]["scores"]["kernel"].shape == (32, 3)
  assert task.forward(params, batch).logits.shape == (4, 3)
  for wrong, words in (
    (head | {"clases": 3}, "config.task.classifier.clases: no such key; did you mean 'classes'"),
    (head | {"name": "x"}, "config.task.classifier.name: no such key"),
    (head | {"parent": None}, "config.task.classifier.parent"),
    ({"kind": head["kind"]}, "config.task.classifier.classes is missing"),
  ):
    with pytest.raises(UserError, match=words):
      config.build(dict(kind=kind, classifier=wrong), "task", model=model)
