"""Early stopping: a run ends when its metric has not become better, keeps its best checkpoint, and stays finished."""

import json
import os
import signal

import numpy as np
import pytest

from lmjax import config, storage
from lmjax.checkpoint import CheckpointConfig
from lmjax.logs import read_metrics
from lmjax.storage.run import best_step
from lmjax.train import PREEMPTED, train
from lmjax.utils.errors import UserError


def test_patience_counts_evaluations_since_the_best():
  rng = np.random.default_rng(0)
  for _ in range(200):
    losses = {5 * i: float(loss) for i, loss in enumerate(rng.integers(0, 6, rng.integers(0, 9)), 1)}
    patience = int(rng.integers(0, 5))
    values, since = list(losses.values()), 0
    for i, value in enumerate(values):
      since = 0 if value < min(values[:i], default=np.inf) else since + 1
    assert CheckpointConfig(patience=patience).stops(losses) == (since >= patience > 0 and bool(values))
  with pytest.raises(ValueError, match="patience are at least 0"):
    CheckpointConfig(patience=-1)


def settings(**checkpoint):
  """A run that learns, while the highest loss counts as the best: that is the first."""
  made = config.load("configs/quickstart.py:debug", {})
  evals = {"every": 2, "validation": {"kind": "lmjax.evals.perplexity:Perplexity", "steps": 1}}
  log = {"every": 5, "tensorboard": False}
  return made | {
    "steps": 20,
    "evals": evals,
    "log": log,
    "checkpoint": {"keep": 1, "patience": 3, "metric": "-validation_loss"} | checkpoint,
  }


def run(folder, profile=None, **checkpoint):
  assert train(settings(**checkpoint), folder, profile) == 0
  evaluated = [line["step"] for line in read_metrics(folder) if "validation_loss" in line]
  return evaluated, sorted(int(path.name) for path in (folder / "checkpoints").iterdir() if path.name.isdigit())


def test_a_run_stops_resumes_as_finished_and_goes_on_with_more_patience(tmp_path, capsys):
  assert run(tmp_path, every=0) == ([2, 4, 6, 8], [2, 8]) and best_step(tmp_path) == 2
  assert "stopped at step 8 of 20: the best of -validation_loss is step 2" in capsys.readouterr().out
  summary = json.loads((tmp_path / "summary.json").read_text())
  assert summary["steps"] == 8 and summary["tokens"] == 8 * 256
  assert run(tmp_path, every=0) == ([2, 4, 6, 8], [2, 8])
  assert "is finished: step 8 of 20; set a larger --config.checkpoint.patience" in capsys.readouterr().out
  assert run(tmp_path, every=0, patience=5)[0] == [2, 4, 6, 8, 10, 12]
  assert run(tmp_path, every=0, patience=0)[0] == [*range(2, 21, 2)]
  assert run(tmp_path, every=0, patience=2)[0] == [*range(2, 21, 2)]
  assert "set a larger --config.steps" in capsys.readouterr().out


def test_an_interrupted_run_stops_where_an_uninterrupted_one_does(tmp_path):
  def interrupt(step, state):
    if step == 5:
      os.kill(os.getpid(), signal.SIGTERM)

  assert train(settings(every=0), tmp_path, interrupt) == PREEMPTED
  assert run(tmp_path, every=0) == ([2, 4, 6, 8], [2, 8])


def test_a_checkpoint_without_an_evaluation_is_not_the_best(tmp_path):
  """Neither that of an interrupted run, nor one between two evaluations: the evaluation before is of other weights."""

  def interrupt(step, state):
    if step == 3:
      os.kill(os.getpid(), signal.SIGTERM)

  assert train(settings(every=2, patience=0), tmp_path, interrupt) == PREEMPTED
  kept = sorted(int(path.name) for path in (tmp_path / "checkpoints").iterdir() if path.name.isdigit())
  assert kept == [2, 3] and best_step(tmp_path) == 2
  assert storage.open(tmp_path, "best").load().step == 2 and storage.open(tmp_path).load().step == 3
  assert train(settings(every=3, patience=0), tmp_path) == 0
  assert best_step(tmp_path) == 2


def test_patience_without_its_metric_or_evaluations_is_refused(tmp_path):
  with pytest.raises(UserError, match="no evaluator gives '-dev_f1', which patience needs"):
    train(settings(metric="-dev_f1"), tmp_path / "a")
  made = settings()
  made["evals"]["every"] = 0
  with pytest.raises(UserError, match="set config.evals.every"):
    train(made, tmp_path / "b")
