"""The run folders on this machine, and what state they are in."""

import dataclasses
import fcntl
from collections.abc import Sequence

from etils import epath

from lmjax.checkpoint import folders
from lmjax.logs import read_metrics
from lmjax.parallel import run_lock
from lmjax.utils.checksums import walk
from lmjax.utils.errors import UserError
from lmjax.utils.files import expand, is_remote, read_json

DEPTH = 3  # levels of folders in which runs are looked for


@dataclasses.dataclass(frozen=True)
class State:
  """What a run folder says about its run; losses are None where none was measured."""

  state: str  # finished, running or stopped
  step: int
  steps: int
  train_loss: float | None
  validation_loss: float | None
  best: tuple[int, float] | None  # the step with the lowest validation loss, and that loss
  bytes: int
  changed: float  # seconds since 1970


def find(paths: Sequence[epath.PathLike]) -> dict[str, epath.Path]:
  """Returns the run folders among some folders and the folders in them, by their paths.

  Raises:
    UserError: a path does not exist.
  """
  runs: dict[str, epath.Path] = {}
  for path in paths:
    folder = expand(path)
    if not folder.is_dir():
      raise UserError(f"runs: {path} is not a folder")
    runs |= {str(run): run for run in _inside(folder, DEPTH)}
  return runs


def _inside(folder: epath.Path, depth: int) -> list[epath.Path]:
  if (folder / "config.json").exists() and (folder / "metrics.jsonl").exists():
    return [folder]
  inner = sorted(path for path in folder.iterdir() if path.is_dir() and path.name[0] != ".") if depth else []
  return [run for path in inner for run in _inside(path, depth - 1)]


def state_of(folder: epath.PathLike) -> State:
  """Returns the state of a run folder; what is corrupt in it counts as missing."""
  folder = expand(folder)
  lines = read_metrics(folder)
  losses = {line["step"]: line["validation_loss"] for line in lines if "validation_loss" in line}
  trained = [line["train_loss"] for line in lines if "train_loss" in line]
  step = max([*folders(folder), *(line["step"] for line in lines), 0])
  files = walk(folder)
  try:
    steps = int(read_json(folder / "config.json").get("steps") or 0)
    done = (folder / "summary.json").exists() and read_json(folder / "summary.json").get("finished") is not None
  except (UserError, TypeError, ValueError):
    steps, done = 0, False
  stats = [file.stat() for file in files.values()]
  best = min(losses.items(), key=lambda item: item[1]) if losses else None
  return State(
    "running" if is_running(folder) else "finished" if done and step >= steps else "stopped",
    step, steps, trained[-1] if trained else None, [*losses.values()][-1] if losses else None, best,
    sum(stat.length for stat in stats), max((float(stat.mtime) for stat in stats), default=0.0),
  )  # fmt: skip


def is_running(folder: epath.Path) -> bool:
  """Returns whether a process holds the lock of a local run folder."""
  file = folder / run_lock.NAME
  if is_remote(folder) or not file.exists():
    return False
  with open(file) as lock:
    try:
      fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:
      return True
  return False
