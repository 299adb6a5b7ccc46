"""Checkpoints: the one importer of Orbax.

A checkpoint is a folder `<step>` with `state` (parameters, optimizer, transform, carry, step) and `data_state` (random
key and data position). It is written in the background and gets its name only when it is complete.
"""

import dataclasses
import json
import logging
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from etils import epath
from orbax.checkpoint import v1 as ocp

from lmjax.parallel import hosts
from lmjax.state import TrainState
from lmjax.utils import names
from lmjax.utils.errors import UserError, reason
from lmjax.utils.pytree import Tree

CORRUPT = ("corrupt", "damaged")  # folders of corrupt checkpoints; the second is that of format 1
OLD_NAMES, NEW_NAMES = "lmjax.utils.renames:old_tree", "lmjax.utils.renames:new_tree"  # for format 1 alone
UNKNOWN = 1e30  # loss of a checkpoint that was not evaluated; JSON has no NaN

DataState = dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class CheckpointConfig:
  """When to save and what to keep; a run also saves at its end and when it is interrupted."""

  every: int = 500  # steps; 0 only at the end
  keep: int = 2  # the latest ones
  best: int = 1  # and those with the lowest validation loss

  def __post_init__(self):
    if self.every < 0 or self.keep < 1 or self.best < 0:
      raise ValueError("every and best are at least 0, keep at least 1")


class Checkpoints:
  """The checkpoints of one run folder."""

  def __init__(
    self, workdir: epath.Path, settings: CheckpointConfig = CheckpointConfig(), say: Callable[[str], None] = print
  ):
    self.folder = _folder(workdir)
    self._say = say
    if jax.process_index() == 0:
      self._quarantine()
    hosts.wait_for_all("checkpoints checked")
    policies = ocp.training.preservation_policies
    keep = [policies.LatestN(settings.keep)]
    if settings.best:
      keep.append(policies.BestN(get_metric_fn=lambda metrics: metrics["loss"], reverse=True, n=settings.best))
    logging.getLogger("absl").setLevel(logging.CRITICAL)  # Orbax logs every save, and every error twice
    self._checkpointer = ocp.training.Checkpointer(
      self.folder,
      save_decision_policy=ocp.training.save_decision_policies.FixedIntervalPolicy(1),
      preservation_policy=policies.AnyPreservationPolicy(keep),
      cleanup_tmp_directories=True,
    )
    self._saving: tuple[int, Any] | None = None

  def _quarantine(self) -> None:
    """Moves checkpoints whose metrics cannot be read aside: Orbax reads those of all before anything else."""
    for path in self.folder.iterdir() if self.folder.exists() else []:
      try:
        if path.name.isdigit():
          json.loads((path / "metrics" / "metrics").read_text())
      except (OSError, ValueError) as error:
        corrupt = self.folder.parent / "corrupt" / path.name
        corrupt.parent.mkdir(exist_ok=True)
        self._say(f"checkpoint {path} is corrupt, moved to {corrupt} ({reason(error)})")
        if corrupt.exists():
          corrupt.rmtree()
        path.rename(corrupt)

  def steps(self) -> list[int]:
    """Returns the steps of the complete checkpoints, oldest first."""
    return [checkpoint.step for checkpoint in self._checkpointer.checkpoints]

  def save(self, step: int, state: TrainState, data_state: DataState, loss: float | None) -> None:
    """Starts to write a checkpoint and returns as soon as the arrays are copied.

    Raises:
      UserError: the one before could not be written.
    """
    self.wait()
    try:
      response = self._checkpointer.save_checkpointables_async(
        step,
        {"state": state.saved(), "data_state": data_state},
        metrics={"loss": UNKNOWN if loss is None else loss},
        force=True,
        overwrite=True,
      )
    except Exception as error:  # Orbax passes on whatever the file system raised
      raise self._failed(step, error) from error
    self._saving = (step, response)

  def wait(self) -> None:
    """Returns when the checkpoint being written is complete; raises UserError if it could not be written."""
    if self._saving:
      step, response = self._saving
      self._saving = None
      try:
        response.result()
      except Exception as error:
        raise self._failed(step, error) from error

  def _failed(self, step: int, error: Exception) -> UserError:
    good = [s for s in sorted(int(p.name) for p in self.folder.iterdir() if p.name.isdigit()) if s != step]
    last = f"the last complete one is step {good[-1]}" if good else "there is no earlier one"
    return UserError(
      f"checkpoint: step {step} could not be written to {self.folder}: {reason(error)}; {last}. "
      "Free some space or choose another --workdir, then rerun the same command to resume"
    )

  def restore(self, state: TrainState, data_state: DataState) -> tuple[TrainState, DataState] | None:
    """Returns the newest complete state, on the shardings of the abstract `state`; None without a checkpoint.

    A corrupt checkpoint is named and skipped. Its frozen part is that of `state`.

    Raises:
      UserError: there are checkpoints and none can be read.
    """
    steps = self.steps()
    failures = []
    for step in reversed(steps):
      try:
        loaded, data = self._load(step, state.saved(), data_state)
        if int(loaded["step"]) != step:
          raise ValueError(f"it holds step {int(loaded['step'])}")
        return state.replace(**loaded), data
      except Exception as error:  # what a corrupt file raises depends on where it is corrupt
        failures.append(f"step {step}: {reason(error)}")
        self._say(f"checkpoint {self.folder / str(step)} is corrupt or does not fit, skipped ({reason(error)})")
    if steps:
      raise UserError(f"checkpoint: none of {len(steps)} in {self.folder} can be read ({failures[0]})")
    if any((self.folder.parent / name).exists() for name in CORRUPT):
      raise UserError(
        f"checkpoint: {self.folder} has no complete checkpoint, and {self.folder.parent / 'corrupt'} has corrupt ones; "
        "delete that folder to start from scratch, or choose another --workdir"
      )
    return None

  def _load(self, step: int, wanted: dict[str, Tree], data_state: DataState) -> tuple[dict[str, Tree], DataState]:
    """Returns the state and the data state of one checkpoint, also of one in the names of format 1."""
    if not _is_old(self.folder / str(step)):
      items = self._checkpointer.load_checkpointables(step, {"state": wanted, "data_state": data_state})
      return items["state"], items["data_state"]
    old = {key: value for key, value in data_state.items() if key != "collects"}
    wanted = names.load(OLD_NAMES)(wanted)
    items = self._checkpointer.load_checkpointables(step, {"state": wanted, "place": old})
    return names.load(NEW_NAMES)(items["state"]), items["place"] | {"collects": np.asarray(step, np.int64)}

  def close(self) -> None:
    """Waits for the last write."""
    self.wait()
    self._checkpointer.close()


def load(workdir: epath.PathLike, wanted: dict[str, Tree], step: int | None = None) -> tuple[dict[str, Tree], int]:
  """Returns parts of a run folder's newest (or given) state, such as {"params": ...}, and its step.

  Args:
    wanted: the abstract parts, with the shardings to load them on; nothing else is read.

  Raises:
    UserError: the folder has no checkpoint, not that one, or none that can be read.
  """
  steps = _steps(workdir)
  if not steps:
    raise UserError(
      f"checkpoint: no checkpoint found in {workdir}; train first: lmjax train --config ... --workdir {workdir}"
    )
  if step is not None and step not in steps:
    raise UserError(f"checkpoint: {workdir} has no step {step}; it has {', '.join(map(str, steps))}")
  logging.getLogger("absl").setLevel(logging.CRITICAL)
  partial = ocp.options.PyTreeOptions.Loading(partial_load=True)
  for candidate in [step] if step is not None else reversed(steps):
    old = _is_old(steps[candidate])
    abstract = names.load(OLD_NAMES)(wanted) if old else wanted
    try:
      with ocp.Context(pytree_options=ocp.options.PyTreeOptions(loading=partial)):
        state = ocp.load_checkpointables(steps[candidate], {"state": abstract})["state"]
      return names.load(NEW_NAMES)(state) if old else state, candidate
    except Exception as error:  # what a corrupt file raises depends on where it is corrupt
      failure = f"checkpoint: {steps[candidate]} cannot be read: {reason(error)}"
  raise UserError(failure)


def metadata(workdir: epath.PathLike, step: int | None = None) -> tuple[Tree, int]:
  """Returns the metadata of a checkpoint's parameters, no value read, and its step: shapes, dtypes, shardings.

  Raises:
    UserError: the folder has no checkpoint, not that one, or it cannot be read.
  """
  steps = _steps(workdir)
  if not steps or (step is not None and step not in steps):
    raise UserError(f"checkpoint: {workdir} has no step {step}; it has {', '.join(map(str, steps)) or 'none'}")
  step = max(steps) if step is None else step
  try:
    params = ocp.checkpointables_metadata(steps[step]).metadata["state"]["params"]
    return names.load(NEW_NAMES)(params) if _is_old(steps[step]) else params, step
  except Exception as error:  # what a corrupt file raises depends on where it is corrupt
    raise UserError(f"checkpoint: {steps[step]} cannot be read: {reason(error)}") from error


def best(workdir: epath.PathLike) -> int:
  """Returns the step of a run folder's checkpoint with the lowest validation loss.

  Raises:
    UserError: no checkpoint was evaluated.
  """
  losses = {}
  for file in _folder(workdir).glob("*/metrics/metrics"):
    losses[int(file.parent.parent.name)] = json.loads(file.read_text())["loss"]
  if not losses or min(losses.values()) >= UNKNOWN:
    raise UserError(f"checkpoint: {workdir} has no checkpoint with a validation loss")
  return min(losses, key=losses.get)


def is_checkpoint(path: epath.PathLike) -> bool:
  """Returns whether a folder is itself a checkpoint."""
  return (epath.Path(path) / "state").is_dir()


def _steps(path: epath.PathLike) -> dict[int, epath.Path]:
  """Returns {step: folder}, oldest first, of a run folder, or of a folder that is itself a checkpoint."""
  if is_checkpoint(path):
    folder = _folder(path).parent
    return {int(folder.name) if folder.name.isdigit() else 0: folder}
  folder = _folder(path)
  names = [p.name for p in folder.iterdir() if p.name.isdigit()] if folder.exists() else []
  return {step: folder / str(step) for step in sorted(map(int, names))}


def _folder(workdir: epath.PathLike) -> epath.Path:
  """Returns where a run keeps its checkpoints, as the absolute path that Orbax wants."""
  path = epath.Path(workdir)
  return (path if "://" in str(path) else epath.Path(path.expanduser().absolute())) / "checkpoints"


def data_state(rng: jax.Array, positions: np.ndarray, version: int, collects: int = 0) -> DataState:
  """Returns what a checkpoint keeps besides the state.

  The random key; the positions of the data's streams [streams, integers]; the version of the data; how many batches of
  data have been taken.
  """
  counts = {"version": version, "collects": collects}
  return {
    "rng": np.asarray(jax.random.key_data(rng)),
    "positions": np.asarray(positions, np.int64),
    **{key: np.asarray(value, np.int64) for key, value in counts.items()},
  }


def _is_old(checkpoint: epath.Path) -> bool:
  """Returns whether a checkpoint is in the names of format 1."""
  return (checkpoint / "place").exists()
