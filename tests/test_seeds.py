"""Several seeds with one command: what is reported, and that finished runs are not repeated."""

import json
import math
import shutil
import types

import numpy as np
import pytest
from etils import epath

from lmjax.__main__ import main
from lmjax.commands import seeds
from lmjax.utils.errors import DivergedError, UserError
from tests.conftest import ROOT


def test_mean_deviation_and_failed_runs():
  results = {
    3: {"step": 20, "dev_accuracy": 0.5, "dev_accuracy_low": 0.4, "dev_majority_accuracy": 0.5, "dev_f1": 0.1},
    4: {"step": 40, "dev_accuracy": 0.8, "dev_accuracy_low": 0.7, "dev_majority_accuracy": 0.5, "dev_f1": 0.3},
  }
  report = seeds.summarize(results, "-dev_accuracy")
  assert set(report["metrics"]) == {"dev_accuracy", "dev_f1"} and report["failed"] == [3]
  np.testing.assert_allclose(report["metrics"]["dev_accuracy"], (0.65, 0.3 / 2**0.5))
  assert seeds.summarize({3: results[3]}, "-dev_f1") == {
    "metrics": {"dev_accuracy": (0.5, 0.0), "dev_f1": (0.1, 0.0)}, "failed": [], "runs": {3: results[3]},
  }  # fmt: skip


def test_what_counts_as_failed():
  """A run that diverged, a score that is not a number, and one at or below the most frequent class."""
  results = {
    0: {"my_dev_accuracy": 0.4, "my_dev_majority_accuracy": 0.5},
    1: {},
    2: {"my_dev_accuracy": 0.7, "my_dev_majority_accuracy": 0.5},
    3: {"my_dev_accuracy": math.nan, "my_dev_majority_accuracy": 0.5},
  }
  assert seeds.summarize(results, "-my_dev_accuracy")["failed"] == [0, 1, 3]
  report = seeds.summarize({0: {}, 1: {"validation_loss": 2.0}, 2: {"validation_loss": 4.0}}, "validation_loss")
  assert report["failed"] == [0] and report["metrics"] == {"validation_loss": (3.0, 2**0.5)}
  assert seeds.summarize({0: {}}, "validation_loss")["failed"] == [0]


def test_seeds_are_a_range_or_a_list():
  assert seeds.parse_seeds("0:3") == [0, 1, 2] and seeds.parse_seeds(":2") == [0, 1]
  assert seeds.parse_seeds("7,2") == [7, 2]
  for wrong in ("", "3:3", "1,1", "-1", "a", "1:b", "0:99999999999", f"0:{10**30}", str(2**63), "5:1"):
    with pytest.raises(UserError, match="give FIRST:END"):
      seeds.parse_seeds(wrong)


def test_every_seed_has_a_run_that_is_resumed(tmp_path, monkeypatch, capsys):
  trained, evaluated = [], []

  def train(settings, folder):
    trained.append((settings["seed"], folder.name))
    folder.mkdir(parents=True, exist_ok=True)
    return 75 if settings["seed"] == 1 and len(trained) == 2 else 0

  def scores(folder):
    evaluated.append(folder.name)
    return {"dev_accuracy": 0.5 + 0.1 * int(folder.name), "dev_majority_accuracy": 0.5}

  monkeypatch.setattr(seeds, "train", train)
  monkeypatch.setattr(seeds, "_scores", scores)
  command = ["seeds", "--config", "configs/glue.py:debug", "--seeds", "0:2", "--workdir", str(tmp_path)]
  assert main(command) == 75 and trained == [(0, "0"), (1, "1")] and evaluated == ["0"]
  assert main(command) == 0 and evaluated == ["0", "0", "1"]
  report = json.loads((tmp_path / "seeds.json").read_text())
  assert report["failed"] == [0] and report["runs"]["1"]["dev_accuracy"] == 0.6
  assert "dev_accuracy 0.5500 ± 0.0707" in (out := capsys.readouterr().out) and "2 runs, 1 failed [0]" in out


def test_a_run_that_diverges_is_counted_and_the_others_go_on(tmp_path, monkeypatch, capsys):
  def train(settings, folder):
    if settings["seed"] == 0:
      raise DivergedError("step 7: the loss is nan")
    return 0

  monkeypatch.setattr(seeds, "train", train)
  monkeypatch.setattr(seeds, "_scores", lambda folder: {"dev_accuracy": 0.75, "dev_majority_accuracy": 0.5})
  command = ["seeds", "--config", "configs/glue.py:debug", "--seeds", "0:2", "--workdir", str(tmp_path)]
  assert main(command) == 0
  out = capsys.readouterr().out
  assert "seed 0: step 7: the loss is nan" in out and "2 runs, 1 failed [0]" in out


def test_scores_are_those_of_the_best_checkpoint_of_now(tmp_path, monkeypatch):
  """Also where a run was trained further after it had been evaluated."""
  best, evaluated = [20], []
  monkeypatch.setattr(seeds, "best_step", lambda folder: best[0])
  monkeypatch.setattr(seeds.storage, "open", lambda folder, step: types.SimpleNamespace(load=lambda: best[0]))
  monkeypatch.setattr(seeds, "make_evaluation", lambda *arguments: None)
  monkeypatch.setattr(
    seeds, "evaluate", lambda step, how: evaluated.append(step) or {"step": step, "dev_accuracy": 0.5}
  )
  for step, wanted in ((20, [20]), (20, [20]), (40, [20, 40])):
    best[0] = step
    assert seeds._scores(epath.Path(tmp_path))["step"] == step and evaluated == wanted


def test_the_config_is_read_once_and_no_run_changes_that_of_the_next(tmp_path, monkeypatch):
  config, lengths = tmp_path / "mine.py", []
  shutil.copy(ROOT / "configs" / "glue.py", config)

  def train(settings, folder):
    lengths.append(settings["data"]["length"])
    settings["data"]["length"] = 1
    config.write_text("no config")
    folder.mkdir(parents=True)
    return 0

  monkeypatch.setattr(seeds, "train", train)
  monkeypatch.setattr(seeds, "_scores", lambda folder: {"dev_accuracy": 0.5})
  arguments = ["--config", f"{config}:debug", "--seeds", "0:3", "--workdir", str(tmp_path / "runs")]
  assert main(["seeds", *arguments]) == 0
  assert len(lengths) == 3 and len(set(lengths)) == 1 and lengths[0] > 1
