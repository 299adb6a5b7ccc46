"""What a task carries from batch to batch is saved, resumed, sharded with its rows, and never split."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lmjax import config, experiment
from lmjax.__main__ import main
from lmjax.evals.base import Context
from lmjax.evals.terms import sum_terms
from lmjax.models.recurrent import Config, Recurrent
from lmjax.parallel.sharding import use_layout
from lmjax.storage.run import RunFolder
from lmjax.tasks.causal_lm import CausalLM
from lmjax.tasks.continued_lm import ContinuedLM
from lmjax.testing import fake_batch, init_params
from lmjax.utils.errors import UserError

ELMO = ["--config", "configs/elmo.py:debug", "--config.optim.schedule=constant", "--config.evals.every=0"]


@pytest.mark.long
def test_a_resumed_run_is_the_uninterrupted_one_bit_for_bit(tmp_path):
  for name, stops in (("whole", (4,)), ("parts", (2, 4))):
    for steps in stops:
      assert main(["train", *ELMO, f"--config.steps={steps}", "--workdir", str(tmp_path / name)]) == 0
  whole, parts = RunFolder(tmp_path / "whole"), RunFolder(tmp_path / "parts")
  assert whole.step == parts.step == 4
  for name in whole.leaves:
    assert np.array_equal(whole.read(name), parts.read(name)), name


def test_tasks_with_a_carry_refuse_microbatches():
  settings = config.load("configs/elmo.py:debug", {"optim.microbatches": "2"})
  with pytest.raises(UserError, match="microbatches must be 1"):
    experiment.build(settings)


def test_evaluation_continues_each_row():
  run = experiment.build(config.load("configs/elmo.py:debug"))
  batches = run.data.validate(run.tokenizer, 2)
  with use_layout(run.layout):
    params = run.state().params
    terms = sum_terms(Context(run.task, run.data, run.tokenizer, 2, run.layout), batches)(params)
    rows = {key: np.concatenate([b[key] for b in batches]) for key in run.task.spec(2, run.data.length)}
    half = len(rows["weights"]) // 2
    total, count = 0.0, 0.0
    for part in (slice(0, half), slice(half, None)):  # each half of the rows is read as one long row
      carry = run.task.initial_carry(1)
      loss = jax.jit(lambda carry, batch: run.task.loss(params, {}, carry, batch))
      for i in range(half):
        row, carry = loss(carry, {key: a[part][i : i + 1] for key, a in rows.items()})
        total, count = total + float(row["forwards"].total), count + float(row["forwards"].count)
  np.testing.assert_allclose(float(terms["forwards"].total), total, rtol=1e-5)
  assert float(terms["forwards"].count) == count


def test_text_in_two_batches_is_one_long_row():
  """Two batches with the carry between them give the loss of one; padding does not change the carry."""
  model = Recurrent(Config(vocabulary=50, length=16, width=16, cells=16))
  task, whole = ContinuedLM(model), CausalLM(model, packed=False)
  batch = fake_batch(whole, 4, 16) | {"weights": jnp.ones((4, 16))}
  params = init_params(whole, batch)
  wanted, _ = whole.loss(params, {}, {}, batch)
  total, carry = 0.0, task.initial_carry(4)
  for part in (slice(0, 10), slice(10, 16)):
    terms, carry = task.loss(params, {}, carry, {key: a[:, part] for key, a in batch.items()})
    total += terms["nll"].total
  np.testing.assert_allclose(total, wanted["nll"].total, rtol=1e-5)
  _, after = task.loss(params, {}, carry, batch | {"weights": jnp.zeros((4, 16))})
  jax.tree.map(np.testing.assert_array_equal, after, carry)


def test_gradients_end_where_a_batch_does():
  model = Recurrent(Config(vocabulary=50, length=8, width=16, cells=16))
  task = ContinuedLM(model)
  batch = fake_batch(task, 2, 8) | {"weights": jnp.ones((2, 8))}
  params = init_params(task, batch)

  def later(params):
    _, carry = task.loss(params, {}, task.initial_carry(2), batch)
    return sum(jnp.sum(leaf) for leaf in jax.tree.leaves(carry))

  assert all(not np.any(leaf) for leaf in jax.tree.leaves(jax.grad(later)(params)))
  with pytest.raises(ValueError, match="packed must be false"):
    ContinuedLM(model, packed=True)
