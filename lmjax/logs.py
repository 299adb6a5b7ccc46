"""Logging of a run: progress bar, metrics.jsonl, TensorBoard, wandb, loss.png, summary.json; on process 0 only."""

import contextlib
import dataclasses
import json
import time
from collections import defaultdict
from typing import Any

import jax
from etils import epath
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from lmjax.data.sources.base import BadRecord
from lmjax.utils import files
from lmjax.utils.errors import UserError, one_line

FLUSH_SECONDS = 30  # between writes of the TensorBoard file

console = Console(highlight=False, soft_wrap=True, markup=False, emoji=False)


@dataclasses.dataclass(frozen=True)
class LogConfig:
  """How often and where to log."""

  every: int = 10  # steps between lines of metrics.jsonl
  tensorboard: bool = True
  wandb: str = ""  # name of a project; empty disables it; needs `pip install 'lmjax[wandb]'`

  def __post_init__(self):
    if self.every < 1:
      raise ValueError(f"every must be at least 1 step, not {self.every}")


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

  first: the step from which the run starts or resumes; later lines of metrics.jsonl are removed. steps: the last step.
  """

  def __init__(self, workdir: epath.Path, settings: LogConfig, first: int, steps: int, config: dict[str, Any]):
    self.workdir, self.settings = workdir, settings
    self._enabled = jax.process_index() == 0
    # A resumed run repeats the later ones.
    self._lines = [line for line in read_metrics(workdir) if line["step"] <= first]
    self._tensorboard = self._wandb = None
    self._skipped = 0  # number of skipped records in debug.log
    if not self._enabled:
      return
    files.write(workdir / "metrics.jsonl", "".join(map(_line, self._lines)))
    if settings.wandb:
      self._wandb = _start_wandb(settings.wandb, workdir, config)
    if settings.tensorboard and not files.is_remote(workdir):
      self._tensorboard = _TensorBoard(workdir / "tensorboard", first)
    self._progress = Progress(
      TextColumn("step {task.completed}/{task.total}"),
      BarColumn(),
      TextColumn("loss {task.fields[loss]}  {task.fields[speed]} tokens/s"),
      TimeRemainingColumn(),
      console=console,
      refresh_per_second=4,
    )
    self._bar = self._progress.add_task("train", total=steps, completed=first, loss="-", speed="-")
    self._progress.start()

  def advance(self, step: int, loss: float, tokens_per_second: float) -> None:
    """Updates the progress bar."""
    if self._enabled:
      self._progress.update(self._bar, completed=step, loss=f"{loss:.4f}", speed=f"{tokens_per_second:,.0f}")

  def write(self, step: int, metrics: dict[str, float]) -> None:
    """Appends the metrics of a step to metrics.jsonl, TensorBoard and wandb."""
    if not self._enabled:
      return
    line = {"step": step, **metrics}
    self._lines.append(line)
    files.append(self.workdir / "metrics.jsonl", _line(line))
    if self._tensorboard:
      self._tensorboard.write(step, metrics)
    if self._wandb:
      self._wandb.log(metrics, step=step)

  def skipped_records(self, skipped: list[BadRecord]) -> None:
    """Appends to debug.log a line for each record skipped since the last call; `skipped` are all of this run."""
    if self._enabled and len(skipped) > self._skipped:
      new, self._skipped = skipped[self._skipped :], len(skipped)
      lines = (one_line(f"skipped {record.where}: {record.why}", 2000) + "\n" for record in new)
      files.append(self.workdir / "debug.log", "".join(lines))

  def say(self, text: str) -> None:
    """Prints a line above the progress bar."""
    if self._enabled:
      console.print(text)

  def summary(self, values: dict[str, Any]) -> None:
    """Writes summary.json and loss.png."""
    if self._enabled:
      files.write(self.workdir / "summary.json", json.dumps(values, indent=2) + "\n")
      plot(self._lines, self.workdir)

  def close(self) -> None:
    """Stops the progress bar and closes the files."""
    if self._enabled:
      self._progress.stop()
    if self._tensorboard:
      self._tensorboard.close()
    if self._wandb:
      self._wandb.finish()


class _TensorBoard:
  """Scalars for TensorBoard. tensorboardX writes them in a thread, for which a run waits forever at a full disk."""

  def __init__(self, folder: epath.Path, first: int):
    from tensorboardX.event_file_writer import EventsWriter
    from tensorboardX.proto.event_pb2 import Event, SessionLog
    from tensorboardX.summary import scalar

    files.make_folder(folder)
    self._folder, self._event, self._scalar = folder, Event, scalar
    self._flushed = time.monotonic()
    with files.writing(folder):
      self._writer = EventsWriter(str(folder / "events"))
      # Hides what an interrupted run logged after the step at which this one starts.
      self._writer.write_event(Event(step=first + 1, session_log=SessionLog(status=SessionLog.START)))

  def write(self, step: int, metrics: dict[str, float]) -> None:
    """Writes the metrics of a step, and from time to time to the disk."""
    with files.writing(self._folder):
      for key, value in metrics.items():
        self._writer.write_event(self._event(wall_time=time.time(), step=step, summary=self._scalar(key, value)))
      if time.monotonic() > self._flushed + FLUSH_SECONDS:
        self._writer.flush()
        self._flushed = time.monotonic()

  def close(self) -> None:
    """Closes the file; what a full disk keeps of it is in metrics.jsonl."""
    with contextlib.suppress(OSError):
      self._writer.close()


def _line(values: dict[str, float]) -> str:
  return json.dumps(values) + "\n"


def read_metrics(workdir: epath.Path) -> list[dict[str, float]]:
  """Returns the lines of a run's metrics.jsonl, without those that a kill or a full disk left incomplete."""
  file, lines = workdir / "metrics.jsonl", []
  for text in files.read_bytes(file).splitlines() if file.exists() else []:
    with contextlib.suppress(ValueError, OverflowError):  # the latter: a number that no float can hold
      line = files.parse_json(text)
      if type(line.get("step")) is int and all(type(v) in (int, float) and [float(v)] for v in line.values()):
        lines.append(line)
  return lines


def plot(lines: list[dict[str, float]], workdir: epath.Path) -> None:
  """Writes loss.png: training and validation loss over steps."""
  from matplotlib.figure import Figure

  figure = Figure(figsize=(7, 4), layout="constrained")
  axes = figure.subplots()
  for key, style in (("train_loss", "-"), ("validation_loss", "o-")):
    points = [(line["step"], line[key]) for line in lines if key in line]
    if points:
      axes.plot(*zip(*points, strict=True), style, label=key.replace("_", " "), markersize=4, linewidth=1.2)
  axes.set(xlabel="step", ylabel="loss (nats per token)")
  axes.set_title(workdir.name, parse_math=False)
  axes.grid(alpha=0.3)
  if axes.lines:
    axes.legend()
  with files.replacing(workdir / "loss.png") as file:
    figure.savefig(file, format="png", dpi=120)


def _start_wandb(project: str, workdir: epath.Path, config: dict[str, Any]):
  try:
    import wandb
  except ImportError as error:
    raise UserError("config.log.wandb: wandb is not installed: pip install 'lmjax[wandb]'") from error
  return wandb.init(project=project, dir=str(workdir), config=config, id=workdir.name, resume="allow")
