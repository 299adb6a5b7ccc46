"""Search over config keys with Optuna: the space, the trials, and the bill of a whole search next to one training.

FLOPs = 6 x parameters x tokens (Kaplan et al., 2020, arXiv:2001.08361);  kWh = PUE x watts x hours / 1000 and
CO2e = carbon intensity x kWh (Strubell et al., 2019, arXiv:1906.02243)
"""

import math
import re
import signal
import subprocess
import time
import warnings
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

from etils import epath

from lmjax.inference.grid import finished, folder_of, values_of
from lmjax.logs import read_metrics
from lmjax.planning.energy import INTENSITY, KILOGRAMS_PER_POUND, POUNDS_PER_KWH
from lmjax.planning.hardware import kilowatt_hours
from lmjax.utils.errors import UserError, did_you_mean
from lmjax.utils.fields import Fields
from lmjax.utils.files import expand, read_json

SAMPLERS = ("random", "tpe", "evolution")
BUDGETS = ("steps", "flops", "kwh")
NUMBER = r"[-+]?\d+(?:\.\d*)?(?:[eE][-+]?\d+)?"
POLL = 1.0  # seconds between looks at the metrics of a trial
KILOGRAMS = POUNDS_PER_KWH * KILOGRAMS_PER_POUND  # of CO2e per kWh, the average of the paper


class Axis(NamedTuple):
  """A config key and its values: the `choices`, or all from `low` to `high`."""

  key: str
  choices: tuple[str, ...] = ()
  low: float = 0.0
  high: float = 0.0
  log: bool = False
  whole: bool = False

  def suggest(self, trial: Any) -> str:
    """Returns the value of a trial."""
    if self.choices:
      return str(trial.suggest_categorical(self.key, self.choices))
    if self.whole:
      return str(trial.suggest_int(self.key, int(self.low), int(self.high), log=self.log))
    return format(trial.suggest_float(self.key, self.low, self.high, log=self.log), ".6g")


def read_axis(text: str) -> Axis:
  """Returns the axis that KEY=LOW:HIGH, KEY=LOW:HIGH:log or KEY=VALUE,VALUE describes.

  Raises:
    UserError: it has another form, or the range is empty.
  """
  key, equals, values = text.partition("=")
  if not equals or not key or not values:
    raise UserError(f"--space {text}: must be KEY=LOW:HIGH, KEY=LOW:HIGH:log or KEY=VALUE,VALUE")
  match = re.fullmatch(rf"({NUMBER}):({NUMBER})(:log)?", values)
  if not match:
    return Axis(key, tuple(values_of(values)))
  low, high, log = float(match[1]), float(match[2]), bool(match[3])
  if not math.isfinite(low + high) or low >= high or (log and low <= 0):
    raise UserError(f"--space {text}: LOW must be below HIGH{', and above 0 for :log' if log else ''}")
  return Axis(key, (), low, high, log, bool(re.fullmatch(r"[-+]?\d+:[-+]?\d+(:log)?", values)))


def read_budget(text: str) -> tuple[str, float]:
  """Returns what is limited, and how much of it: steps=20000, flops=1e15 or kwh=0.5."""
  name, _, number = text.partition("=")
  if name not in BUDGETS:
    raise UserError(f"--budget {text}: must be NAME=NUMBER of {', '.join(BUDGETS)}{did_you_mean(name, BUDGETS)}")
  try:
    value = float(number)
  except ValueError:
    value = math.nan
  if not 0 < value < math.inf:
    raise UserError(f"--budget {text}: the number must be above 0, and finite")
  return name, value


class Used(NamedTuple):
  """What a run, or several, have used; kWh is None where it is neither measured nor follows from watts."""

  steps: float
  flops: float
  hours: float
  kwh: float | None


def used(folder: epath.PathLike, watts: float | None) -> Used:
  """Returns what the run in a folder has used until now."""
  file = expand(folder) / "summary.json"
  if not file.exists():
    return Used(0, 0, 0, 0)
  summary = Fields(read_json(file), file)
  hours = summary.number("seconds", 0.0, least=0) / 3600
  kwh = summary.number("energy_kwh", None, least=0)
  if kwh is None and watts is not None:
    kwh = kilowatt_hours(watts, hours)
  tokens, parameters = (summary.number(key, 0.0, least=0) for key in ("tokens", "parameters"))
  return Used(summary.number("steps", 0.0, least=0), 6 * parameters * tokens, hours, kwh)


def total(parts: Iterable[Used]) -> Used:
  """Returns the sum over runs."""
  parts = list(parts)
  kwh = None if any(part.kwh is None for part in parts) else sum(part.kwh or 0 for part in parts)
  steps, flops, hours = (float(sum(part[i] or 0 for part in parts)) for i in range(3))
  return Used(steps, flops, hours, kwh)


def bill(best: Used, whole: Used, price: float | None, region: str | None) -> list[tuple[str, ...]]:
  """Returns rows (what, of the best trial, of the search, how many times as much); a dash is not known.

  Args:
    price: dollars per hour. region: a key of `planning.energy.INTENSITY`; by default the paper's average.
  """
  intensity = INTENSITY[region] / 1000 if region else KILOGRAMS
  pairs: list[tuple[str, float | None, float | None]] = [
    (name, getattr(best, key), getattr(whole, key))
    for name, key in (("steps", "steps"), ("FLOPs, 6ND", "flops"), ("hours", "hours"), ("kWh", "kwh"))
  ]
  scale = lambda x, factor: None if x is None or factor is None else x * factor  # noqa: E731
  pairs.append(("kg CO2e", scale(best.kwh, intensity), scale(whole.kwh, intensity)))
  pairs.append(("dollars", scale(best.hours, price), scale(whole.hours, price)))
  show = lambda x: "-" if x is None else f"{x:.4g}"  # noqa: E731
  return [(name, show(a), show(b), show(b / a if a and b is not None else None)) for name, a, b in pairs]


class Trials(NamedTuple):
  """Runs the trials of a search, each in a folder that its values name, so that an interrupted one is resumed.

  command: of a training, without the values and the folder. metric: the smallest is best. prune: whether Optuna may
  end a trial at an evaluation.
  """

  workdir: epath.Path
  command: Sequence[str]
  axes: Sequence[Axis]
  metric: str
  prune: bool

  def __call__(self, trial: Any) -> float:
    """Returns the metric of a trial; raises optuna.TrialPruned where it was ended early.

    Raises:
      UserError: the training failed, or has no such metric.
    """
    import optuna

    point = tuple((axis.key, axis.suggest(trial)) for axis in self.axes)
    folder = self.workdir / folder_of(point)
    trial.set_user_attr("folder", folder.name)
    if not finished(folder):
      values = [f"--config.{key}={value}" for key, value in point]
      with subprocess.Popen([*self.command, *values, "--workdir", str(folder)]) as process:
        try:
          pruned = self._watch(trial, folder, lambda: process.poll() is None)
        except BaseException:
          process.send_signal(signal.SIGTERM)  # the run saves its state
          trial.study.enqueue_trial(trial.params)  # and is resumed by the next trial
          raise
        if pruned:
          process.send_signal(signal.SIGTERM)
        code = process.wait()
      if pruned:
        raise optuna.TrialPruned
      if code:
        raise UserError(f"search: the training in {folder} ended with the exit code {code}")
    values_ = [line[self.metric] for line in read_metrics(folder) if self.metric in line]
    if not values_:
      raise UserError(f"search: {folder} has no metric {self.metric!r}; choose --metric, or set config.evals.every")
    return float(values_[-1])

  def _watch(self, trial: Any, folder: epath.Path, runs: Callable[[], bool]) -> bool:
    """Reports the metric of a trial while it runs; returns whether it is to be pruned."""
    reported = 0
    while runs():
      time.sleep(POLL)
      lines = [line for line in read_metrics(folder) if self.metric in line] if self.prune else []
      for line in lines[reported:]:
        trial.report(line[self.metric], int(line["step"]))
      if len(lines) > reported and trial.should_prune():
        return True
      reported = len(lines)
    return False


def make_study(storage: str, name: str, axes: Sequence[Axis], sampler: str, seed: int, prune: bool) -> Any:
  """Returns Optuna's study of a search, a new one or that of the storage.

  A trial whose process was killed is tried again with the same values.

  Args:
    storage: the URL of a database, which many machines may share.

  Raises:
    UserError: the study of the storage has another space.
  """
  import optuna
  import sqlalchemy  # a connection is closed after its use: the folder may be removed, and Python 3.13 warns otherwise

  optuna.logging.set_verbosity(optuna.logging.CRITICAL)
  samplers: dict[str, Callable[[], Any]] = {
    "random": lambda: optuna.samplers.RandomSampler(seed),
    "tpe": lambda: optuna.samplers.TPESampler(seed=seed),
    "evolution": lambda: optuna.samplers.NSGAIISampler(population_size=10, seed=seed),
  }
  warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)  # heartbeats
  again = optuna.storages.RetryHeartbeatStaleTrialCallback(max_retry=3, inherit_intermediate_values=False)
  database = optuna.storages.RDBStorage(
    storage, {"poolclass": sqlalchemy.NullPool}, heartbeat_interval=10, grace_period=60,
    heartbeat_stale_trial_callback=again,
  )  # fmt: skip
  pruner = optuna.pruners.MedianPruner(n_startup_trials=4) if prune else optuna.pruners.NopPruner()
  study = optuna.create_study(
    storage=database, study_name=name, sampler=samplers[sampler](), pruner=pruner, load_if_exists=True
  )
  space = [repr(axis) for axis in axes]
  if study.user_attrs.get("space", space) != space:
    raise UserError(f"search: {storage} has a search with another --space; choose another --workdir")
  study.set_user_attr("space", space)
  return study


def run_trials(study: Any, run: Trials, trials: int, limit: tuple[str, float] | None, watts: float | None) -> Used:
  """Runs trials until so many have ended or the budget is used, and returns what all of them have used.

  Args:
    limit: as `read_budget` returns it; the trial that exceeds it still ends.

  Raises:
    UserError: no trial reached its end, or the budget is in kWh, which are not known.
  """

  def spent() -> Used:
    names = {trial.user_attrs["folder"] for trial in study.trials if "folder" in trial.user_attrs}
    return total(used(run.workdir / name, watts) for name in sorted(names))

  while sum(trial.state.is_finished() for trial in study.trials) < trials:
    if limit:
      value = getattr(spent(), limit[0])
      if value is None:
        raise UserError("search: --budget kwh=N needs --watts: the energy of these runs is not measured")
      if value >= limit[1]:
        break
    ended = any(trial.state.name == "COMPLETE" for trial in study.trials)
    study.optimize(run, n_trials=1, catch=(UserError,) if ended else ())  # values may diverge, all of them hardly
    trial = study.trials[-1]
    print(f"trial {trial.number}: {trial.state.name} {trial.value} {trial.params}", flush=True)
  if not any(trial.state.name == "COMPLETE" for trial in study.trials):
    raise UserError("search: no trial reached its end")
  return spent()
