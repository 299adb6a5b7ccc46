"""Tasks that make their own batches: random keys, metrics, and resuming between two calls of `collect`."""

import json
import os
import signal

import jax
import numpy as np
import pytest

from lmjax import config, experiment
from lmjax.__main__ import main
from lmjax.parallel.sharding import use_layout
from lmjax.storage.run import RunFolder
from lmjax.train import COLLECT
from tests import toys

STEPS, CALLS = 8, 4  # two batches a call
ARGUMENTS = [
  "train", "--config", "configs/quickstart.py:debug", "--config.seed=3", "--config.task.kind=tests.toys:Noisy",
  "--config.transform.kind=tests.toys:Multiple", "--config.optim.schedule=constant", "--config.evals.every=0",
  "--config.checkpoint.every=0",
]  # fmt: skip


@pytest.fixture(autouse=True)
def trust(monkeypatch):
  """The run folders name the toys."""
  monkeypatch.setenv("LMJAX_TRUST", toys.__name__)


def train(workdir, steps=STEPS, code=0):
  assert main([*ARGUMENTS, f"--config.steps={steps}", "--workdir", str(workdir)]) == code


def logged(workdir):
  """Returns {step: line} of metrics.jsonl."""
  lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
  return {line["step"]: line for line in lines if "draw" in line}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
  """A run without interruption."""
  workdir = tmp_path_factory.mktemp("whole")
  train(workdir)
  return workdir


def test_the_key_of_a_collect_is_a_function_of_its_index(whole):
  """And the metrics of every batch are logged with the step that learns from it."""
  lines = logged(whole)
  assert sorted(lines) == list(range(1, STEPS + 1))
  draws = []
  for index in range(CALLS):
    rng = jax.random.fold_in(jax.random.fold_in(jax.random.key(3), COLLECT), index)
    draws += [float(jax.random.uniform(jax.random.split(part, 3)[2])) for part in jax.random.split(rng)]
  np.testing.assert_allclose([lines[step]["draw"] for step in sorted(lines)], draws, rtol=1e-6)
  assert len(set(draws)) == STEPS


def test_collect_gets_the_parameters_that_the_model_sees(whole):
  """Those before the call: the same for its two batches, and not the trained ones, which a transform doubles."""
  lines = logged(whole)
  run = experiment.build(experiment.load_config(whole), whole)
  with use_layout(run.layout):
    table = run.model_params(run.state())["model"]["embed"]["table"]
  assert lines[1]["table_norm"] == pytest.approx(float(np.linalg.norm(table)), rel=1e-5)
  norms = [lines[step]["table_norm"] for step in sorted(lines)]
  assert norms[::2] == norms[1::2] and len(set(norms)) == CALLS


def test_a_run_stopped_between_collects_resumes_bit_for_bit(whole, tmp_path, monkeypatch):
  """SIGTERM arrives in the second call: its batches are learned from, and the next start makes the third call."""
  collect, calls = toys.Noisy.collect, []

  def interrupted(self, *arguments):
    calls.append(len(calls))
    if len(calls) == 2:
      os.kill(os.getpid(), signal.SIGTERM)
    return collect(self, *arguments)

  monkeypatch.setattr(toys.Noisy, "collect", interrupted)
  train(tmp_path, code=75)
  assert RunFolder(tmp_path).step == 4
  train(tmp_path)
  assert len(calls) == CALLS, "no call is made twice, and none is left out"
  assert_same(whole, tmp_path)


def test_a_run_killed_in_a_collect_repeats_it(whole, tmp_path, monkeypatch):
  """Nothing of the interrupted call is saved: the last checkpoint lies between two calls."""
  train(tmp_path, steps=4)
  collect = toys.Noisy.collect

  def killed(self, *arguments):
    yield next(iter(collect(self, *arguments)))
    raise RuntimeError("killed")

  monkeypatch.setattr(toys.Noisy, "collect", killed)
  with pytest.raises(RuntimeError, match="killed"):
    main([*ARGUMENTS, f"--config.steps={STEPS}", "--workdir", str(tmp_path), "--traceback"])
  assert RunFolder(tmp_path).step == 4
  monkeypatch.setattr(toys.Noisy, "collect", collect)
  train(tmp_path)
  assert_same(whole, tmp_path)


def assert_same(first, second):
  one, other = RunFolder(first), RunFolder(second)
  assert one.step == other.step == STEPS and one.leaves.keys() == other.leaves.keys()
  for name in one.leaves:
    assert np.array_equal(one.read(name), other.read(name)), name
  losses = [[(step, line["draw"], line["train_loss"]) for step, line in logged(p).items()] for p in (first, second)]
  assert losses[0] == losses[1]


def test_a_task_that_collects_is_named_in_a_config():
  run = experiment.build(config.load("configs/quickstart.py:debug", {"task.kind": "tests.toys:Noisy"}))
  assert run.task.collects and run.task.reads(2, 8) == run.task.spec(2, 8)
