"""A search over config keys: its space, budget and bill; trials are pruned, reused and resumed."""

import sys

import pytest
from etils import epath

from lmjax.inference import search
from lmjax.utils.errors import UserError

optuna = pytest.importorskip("optuna", reason="needs pip install -e '.[search]'")
# Stands for lmjax train: five steps, whose loss depends on a value, and then waits if it is large, to be pruned.
TRAIN = """
import json, pathlib, sys, time
values = dict(a.removeprefix("--config.").split("=") for a in sys.argv[1:-2])
folder = pathlib.Path(sys.argv[-1]); folder.mkdir(exist_ok=True, parents=True)
with open(folder.parent / "calls", "a") as file: file.write(folder.name + "\\n")
x = float(values["optim.peak_lr"])
summary = dict(parameters=10, steps=5, tokens=100, seconds=3600, energy_kwh=None, finished=None)
(folder / "summary.json").write_text(json.dumps(summary))
lines = [json.dumps(dict(step=s, validation_loss=x + 1 / s)) for s in range(1, 6)]
(folder / "metrics.jsonl").write_text("\\n".join(lines) + "\\n")
time.sleep(60 if x > 50 else 0)
(folder / "summary.json").write_text(json.dumps(summary | dict(finished="now")))
"""


def trials(folder, *axes, prune=False, metric="validation_loss"):
  command = [sys.executable, "-c", TRAIN]
  return search.Trials(epath.Path(folder), command, [search.read_axis(axis) for axis in axes], metric, prune)


def study(folder, run, sampler="random", prune=False):
  return search.make_study(f"sqlite:///{folder}/study.db", "x", run.axes, sampler, 0, prune)


def test_the_space_and_the_budget():
  assert search.read_axis("a.b=1e-4:1e-2:log") == search.Axis("a.b", (), 1e-4, 1e-2, True, False)
  assert search.read_axis("a=2:6") == search.Axis("a", (), 2, 6, False, True)
  assert search.read_axis("a=2,(4,5),x:y").choices == ("2", "(4,5)", "x:y")
  for text in ("a", "a=", "=1:2", "a=2:1", "a=0:1:log", "a=1:1", "a=1:1e999"):
    with pytest.raises(UserError, match="--space"):
      search.read_axis(text)
  assert search.read_budget("flops=1e15") == ("flops", 1e15)
  for text in ("x=1", "steps=0", "steps=-1", "kwh=nan", "steps=", "steps=inf"):
    with pytest.raises(UserError, match="--budget"):
      search.read_budget(text)


@pytest.mark.parametrize("sampler", search.SAMPLERS)
def test_a_search_resumes_and_stops_at_its_budget(sampler, tmp_path, monkeypatch):
  monkeypatch.setattr(search, "POLL", 0.02)
  run = trials(tmp_path, "optim.peak_lr=0.5:4.5", "model.depth=2:3")
  whole = search.run_trials(study(tmp_path, run, sampler), run, 2, None, 500)
  assert (whole.steps, whole.flops, whole.hours) == (10, 12_000, 2) and whole.kwh == pytest.approx(1.58)
  whole = search.run_trials(study(tmp_path, run, sampler), run, 9, ("steps", 20.0), 500)
  assert whole.steps == 20 and len((tmp_path / "calls").read_text().splitlines()) == 4
  best = study(tmp_path, run, sampler).best_trial
  assert best.value == pytest.approx(best.params["optim.peak_lr"] + 0.2, rel=1e-4)
  assert search.bill(search.used(tmp_path / best.user_attrs["folder"], 500), whole, 3.0, "FR") == [
    ("steps", "5", "20", "4"), ("FLOPs, 6ND", "6000", "2.4e+04", "4"), ("hours", "1", "4", "4"),
    ("kWh", "0.79", "3.16", "4"), ("kg CO2e", "0.04424", "0.177", "4"), ("dollars", "3", "12", "4"),
  ]  # fmt: skip


def test_poor_trials_are_pruned_and_equal_ones_run_once(tmp_path, monkeypatch):
  monkeypatch.setattr(search, "POLL", 0.02)
  run = trials(tmp_path, "optim.peak_lr=1,2,3,4,99", prune=True)
  made = study(tmp_path, run, prune=True)
  for value in ("1", "2", "2", "3", "4", "99"):
    made.enqueue_trial({"optim.peak_lr": value})
  search.run_trials(made, run, 6, None, None)
  assert [trial.state.name for trial in made.trials][-1] == "PRUNED" and made.best_value == 1.2
  assert len((tmp_path / "calls").read_text().splitlines()) == 5


def test_an_interrupted_trial_is_resumed_and_one_that_fails_does_not_end_a_search(tmp_path, monkeypatch):
  monkeypatch.setattr(search, "POLL", 0.02)
  run = trials(tmp_path, "optim.peak_lr=1.0:2.0")
  with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
    patch.setattr(search, "read_metrics", lambda folder: (_ for _ in ()).throw(KeyboardInterrupt))
    search.run_trials(study(tmp_path, run), run._replace(prune=True), 1, None, None)
  first = study(tmp_path, run).trials[0].params
  search.run_trials(study(tmp_path, run), run, 2, None, None)
  states = [(trial.state.name, trial.params == first) for trial in study(tmp_path, run).trials[:2]]
  assert states == [("FAIL", True), ("COMPLETE", True)]
  failing = run._replace(command=[sys.executable, "-c", "import sys; sys.exit(2)"], workdir=tmp_path / "new")
  search.run_trials(study(tmp_path, run), failing, 4, None, None)
  assert study(tmp_path, run).trials[-1].state.name == "FAIL"


def test_what_is_missing_is_one_line(tmp_path, monkeypatch):
  monkeypatch.setattr(search, "POLL", 0.02)
  run = trials(tmp_path, "optim.peak_lr=1,2")
  with pytest.raises(UserError, match="has no metric 'x'"):
    search.run_trials(study(tmp_path, run), run._replace(metric="x"), 1, None, None)
  failing = run._replace(command=[sys.executable, "-c", "import sys; sys.exit(2)"], workdir=tmp_path / "new")
  with pytest.raises(UserError, match="exit code 2"):
    search.run_trials(study(tmp_path, run), failing, 9, None, None)
  with pytest.raises(UserError, match="needs --watts"):
    search.run_trials(study(tmp_path, run), run, 9, ("kwh", 1.0), None)
  with pytest.raises(UserError, match="another --space"):
    study(tmp_path, trials(tmp_path, "optim.peak_lr=1,3"))
