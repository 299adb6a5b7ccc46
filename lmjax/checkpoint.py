"""Checkpoints: the one importer of Orbax.

A checkpoint is a folder `<step>` with `state` (parameters, optimizer, transform, carry, step) and `data_state` (RNG and
data position). It is written in the background and appears under its name only when it is whole.
"""

import dataclasses
import json
import logging
from typing import Any

import jax
import numpy as np
from etils import epath
from orbax.checkpoint import v1 as ocp

from lmjax.parallel import hosts
from lmjax.state import TrainState
from lmjax.utils.errors import UserError
from lmjax.utils.pytree import Tree

UNKNOWN = 1e30  # the loss of a checkpoint that was not evaluated, as a number JSON can hold


@dataclasses.dataclass(frozen=True)
class CheckpointConfig:
  """When to save and what to keep; a run also saves at its end and when it is told to stop."""

  every: int = 500  # steps; 0 only at the end
  keep: int = 2  # the latest ones
  best: int = 1  # and those with the lowest validation loss

  def __post_init__(self):
    if self.every < 0 or self.keep < 1 or self.best < 0:
      raise ValueError("every and best are at least 0, keep at least 1")


class Checkpoints:
  """The checkpoints of one run folder."""

  def __init__(self, workdir: epath.Path, settings: CheckpointConfig = CheckpointConfig(), say=print):
    self.folder = _folder(workdir)
    self._say = say
    if jax.process_index() == 0:
      self._quarantine()
    hosts.wait_for_all("checkpoints looked at")
    policies = ocp.training.preservation_policies
    keep = [policies.LatestN(settings.keep)]
    if settings.best:
      keep.append(policies.BestN(get_metric_fn=lambda metrics: metrics["loss"], reverse=True, n=settings.best))
    logging.getLogger("absl").setLevel(logging.CRITICAL)  # Orbax tells every save, and every error twice, at length
    self._checkpointer = ocp.training.Checkpointer(
      self.folder,
      save_decision_policy=ocp.training.save_decision_policies.FixedIntervalPolicy(1),
      preservation_policy=policies.AnyPreservationPolicy(keep),
      cleanup_tmp_directories=True,
    )
    self._saving: tuple[int, Any] | None = None

  def _quarantine(self) -> None:
    """Moves checkpoints whose metrics cannot be read out of the way: Orbax reads all of them before anything else."""
    for path in self.folder.iterdir() if self.folder.exists() else []:
      try:
        if path.name.isdigit():
          json.loads((path / "metrics" / "metrics").read_text())
      except (OSError, ValueError) as error:
        damaged = self.folder.parent / "damaged" / path.name
        damaged.parent.mkdir(exist_ok=True)
        self._say(f"checkpoint {path} is damaged, moved to {damaged} ({_reason(error)})")
        if damaged.exists():
          damaged.rmtree()
        path.rename(damaged)

  def steps(self) -> list[int]:
    """Returns the steps of the whole checkpoints, oldest first."""
    return [checkpoint.step for checkpoint in self._checkpointer.checkpoints]

  def save(self, step: int, state: TrainState, data_state: dict[str, np.ndarray], loss: float | None) -> None:
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
    """Returns when the checkpoint being written is whole; raises UserError if it could not be."""
    if self._saving:
      step, response = self._saving
      self._saving = None
      try:
        response.result()
      except Exception as error:
        raise self._failed(step, error) from error

  def _failed(self, step: int, error: Exception) -> UserError:
    good = [s for s in sorted(int(p.name) for p in self.folder.iterdir() if p.name.isdigit()) if s != step]
    last = f"the last good one is step {good[-1]}" if good else "there is no earlier one"
    reason = _reason(error)
    return UserError(
      f"checkpoint: step {step} could not be written to {self.folder}: {reason}; {last}. "
      "Free some space or choose another --workdir; the same command then goes on from there"
    )

  def restore(self, state: TrainState, data_state: dict[str, np.ndarray]) -> tuple[TrainState, dict] | None:
    """Returns the newest whole state, on the shardings of the abstract `state`; None if there is none.

    A damaged checkpoint is named and skipped.

    Raises:
      UserError: there are checkpoints and none can be read.
    """
    steps = self.steps()
    failures = []
    for step in reversed(steps):
      try:
        found = self._checkpointer.load_checkpointables(step, {"state": state.saved(), "data_state": data_state})
        if int(found["state"]["step"]) != step:
          raise ValueError(f"it holds step {int(found['state']['step'])}")
        return state.replace(**found["state"]), found["data_state"]
      except Exception as error:  # what a damaged file raises depends on where it is damaged
        failures.append(f"step {step}: {_reason(error)}")
        self._say(f"checkpoint {self.folder / str(step)} is damaged or does not fit, skipped ({_reason(error)})")
    if steps:
      raise UserError(f"checkpoint: none of {len(steps)} in {self.folder} can be read ({failures[0]})")
    if (self.folder.parent / "damaged").exists():
      raise UserError(
        f"checkpoint: {self.folder} holds no good one, and {self.folder.parent / 'damaged'} holds damaged ones; "
        "delete that folder to start anew, or choose another --workdir"
      )
    return None

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
    raise UserError(f"checkpoint: {workdir} holds none; train first: lmjax train --config ... --workdir {workdir}")
  if step is not None and step not in steps:
    raise UserError(f"checkpoint: {workdir} has no step {step}; it has {', '.join(map(str, steps))}")
  logging.getLogger("absl").setLevel(logging.CRITICAL)
  partial = ocp.options.PyTreeOptions.Loading(partial_load=True)
  for candidate in [step] if step is not None else reversed(steps):
    try:
      with ocp.Context(pytree_options=ocp.options.PyTreeOptions(loading=partial)):
        return ocp.load_checkpointables(steps[candidate], {"state": wanted})["state"], candidate
    except Exception as error:  # what a damaged file raises depends on where it is damaged
      failure = f"checkpoint: {steps[candidate]} cannot be read: {_reason(error)}"
  raise UserError(failure)


def metadata(workdir: epath.PathLike, step: int | None = None) -> tuple[Tree, int]:
  """Returns what a checkpoint says of its parameters, no value read, and its step: leaves have shape, dtype, sharding.

  Raises:
    UserError: the folder has no checkpoint, not that one, or it cannot be read.
  """
  found = _steps(workdir)
  if not found or (step is not None and step not in found):
    raise UserError(f"checkpoint: {workdir} has no step {step}; it has {', '.join(map(str, found)) or 'none'}")
  step = max(found) if step is None else step
  try:
    return ocp.checkpointables_metadata(found[step]).metadata["state"]["params"], step
  except Exception as error:  # what a damaged file raises depends on where it is damaged
    raise UserError(f"checkpoint: {found[step]} cannot be read: {_reason(error)}") from error


def best(workdir: epath.PathLike) -> int:
  """Returns the step of a run folder's checkpoint with the lowest validation loss.

  Raises:
    UserError: none was evaluated.
  """
  losses = {}
  for file in _folder(workdir).glob("*/metrics/metrics"):
    losses[int(file.parent.parent.name)] = json.loads(file.read_text())["loss"]
  if not losses or min(losses.values()) >= UNKNOWN:
    raise UserError(f"checkpoint: {workdir} holds none with a validation loss")
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


def data_state(rng: jax.Array, positions: np.ndarray, version: int) -> dict[str, np.ndarray]:
  """Returns what a checkpoint says of randomness and data: the key, and where the streams of a data version stand."""
  key = np.asarray(jax.random.key_data(rng))
  return {"rng": key, "positions": np.asarray(positions, np.int64), "version": np.asarray(version, np.int64)}


def _reason(error: BaseException) -> str:
  """Returns the innermost cause of an error in one line."""
  while error.__cause__ is not None:
    error = error.__cause__
  lines = [line.strip() for line in str(error).splitlines() if line.strip()]
  return (lines[0] if lines else type(error).__name__)[:300]
