"""Logging of a run: metrics.jsonl, TensorBoard, wandb, loss.png, summary.json; on process 0 only."""

import contextlib
import dataclasses
import json
import time
from collections import defaultdict
from collections.abc import Callable
from typing import Any

import jax
from etils import epath
from rich.console import Console

from lmjax.data.sources.base import BadRecord
from lmjax.utils import files, names
from lmjax.utils.errors import one_line

console = Console(highlight=False, soft_wrap=True, markup=False, emoji=False)


@dataclasses.dataclass(frozen=True)
class LogConfig:
  """How often and where to log."""

  every: int = 10  # steps between lines of metrics.jsonl
  tensorboard: bool = True
  wandb: str = ""  # name of a project; empty disables it; needs `pip install 'lmjax[wandb]'`
  samples: int = 1  # generated texts at each evaluation, of models that generate; 0 disables them

  def __post_init__(self):
    if self.every < 1 or self.samples < 0:
      raise ValueError(f"every must be at least 1 step, not {self.every}, and samples at least 0, not {self.samples}")


class Silent:
  """What the hosts print that are not the first: nothing."""

  def __getattr__(self, name: str) -> Callable[..., None]:
    return lambda *arguments, **named: None


def screen(workdir: epath.Path) -> Any:
  """Returns what a run prints with, see `lmjax.screen`; only the first host imports it."""
  return Silent() if jax.process_index() else names.load("lmjax.screen:Screen")(workdir)


class Clock:
  """Seconds that a run spends on each activity, by name."""

  def __init__(self):
    self.start = time.perf_counter()
    self.seconds: dict[str, float] = defaultdict(float)

  @contextlib.contextmanager
  def __call__(self, name: str):
    start = time.perf_counter()
    try:
      yield
    finally:
      self.seconds[name] += time.perf_counter() - start

  def total(self) -> float:
    """Returns the seconds since the start of the run."""
    return time.perf_counter() - self.start


class Log:
  """The log of one run folder; it does nothing on processes other than 0.

  first: the step from which the run starts or resumes; later lines of metrics.jsonl are removed.
  """

  def __init__(self, workdir: epath.Path, settings: LogConfig, first: int, config: dict[str, Any]):
    self.workdir, self.settings = workdir, settings
    self._enabled = jax.process_index() == 0
    # A resumed run repeats the later ones.
    self._lines = [line for line in read_metrics(workdir, samples=True) if line["step"] <= first]
    self._tensorboard = self._wandb = None
    self._skipped = 0  # number of skipped records in debug.log
    if not self._enabled:
      return
    files.write(workdir / "metrics.jsonl", "".join(map(_line, self._lines)))
    if settings.wandb:
      self._wandb = names.load("lmjax.trackers:start_wandb")(settings.wandb, workdir, config)
    if settings.tensorboard and not files.is_remote(workdir):
      self._tensorboard = names.load("lmjax.trackers:TensorBoard")(workdir / "tensorboard", first)

  def write(self, step: int, metrics: dict[str, float], samples: list[str] | None = None) -> None:
    """Appends the metrics of a step, or its samples, to metrics.jsonl, TensorBoard and wandb."""
    if not self._enabled or not (metrics or samples):
      return
    line: dict[str, Any] = {"step": step, **metrics, **({"samples": samples} if samples else {})}
    self._lines.append(line)
    files.append(self.workdir / "metrics.jsonl", _line(line))
    if self._tensorboard:
      self._tensorboard.write(step, metrics)
      self._tensorboard.text(step, samples or [])
    if self._wandb:
      self._wandb.log(metrics, step=step)

  def skipped_records(self, skipped: list[BadRecord]) -> None:
    """Appends to debug.log a line for each record skipped since the last call; `skipped` are all of this run."""
    if self._enabled and len(skipped) > self._skipped:
      new, self._skipped = skipped[self._skipped :], len(skipped)
      lines = (one_line(f"skipped {record.where}: {record.why}", 2000) + "\n" for record in new)
      files.append(self.workdir / "debug.log", "".join(lines))

  def summary(self, values: dict[str, Any]) -> None:
    """Writes summary.json and loss.png."""
    if self._enabled:
      files.write(self.workdir / "summary.json", json.dumps(values, indent=2) + "\n")
      names.load("lmjax.curves:plot")(self._lines, self.workdir)

  def close(self) -> None:
    """Closes the files."""
    if self._tensorboard:
      self._tensorboard.close()
    if self._wandb:
      self._wandb.finish()


def _line(values: dict[str, float]) -> str:
  return json.dumps(values) + "\n"


def read_metrics(workdir: epath.Path, samples: bool = False) -> list[dict[str, Any]]:
  """Returns the lines of a run's metrics.jsonl, without those that a kill or a full disk left incomplete.

  Args:
    samples: also the generated texts, lists of strings, which are no metrics.
  """
  file, lines = workdir / "metrics.jsonl", []
  for text in files.read_bytes(file).splitlines() if file.exists() else []:
    with contextlib.suppress(ValueError, OverflowError):  # the latter: a number that no float can hold
      line = files.parse_json(text)
      texts = line.pop("samples", None)
      if samples and isinstance(texts, list):
        lines.append({"step": line["step"], "samples": texts})
      elif type(line.get("step")) is int and all(type(v) in (int, float) and [float(v)] for v in line.values()):
        lines.append(line)
  return lines
