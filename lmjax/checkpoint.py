"""Checkpoints: the one importer of Orbax.

A checkpoint is a folder `<step>` with `state` (parameters, optimizer, transform, carry, step) and `data_state` (random
key and data position). It is written in the background and gets its name only when it is complete: checksums.json is
written after all other files and before Orbax commits the folder, so a kill leaves a checkpoint with its checksums or
none. The commit itself changes two files that hold times only; their checksums are added after it, or, after a kill
in between, by the next run. A checkpoint is loaded only if it has the files and the contents that were written.
"""

import dataclasses
import functools
import logging
import sys
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import jax
import numpy as np
from etils import epath
from orbax.checkpoint import v1 as ocp

from lmjax.parallel import hosts
from lmjax.state import TrainState
from lmjax.utils import checksums, names
from lmjax.utils.errors import UserError, reason
from lmjax.utils.fields import Fields
from lmjax.utils.files import expand, is_remote, read_json
from lmjax.utils.pytree import Tree

CORRUPT = ("corrupt", "damaged")  # folders of corrupt checkpoints; the second is that of format 1
OLD_NAMES, NEW_NAMES = "lmjax.utils.renames:old_items", "lmjax.utils.renames:new_items"  # for format 1 alone
UNKNOWN = 1e30  # loss of a checkpoint that was not evaluated; JSON has no NaN
METRICS = "metrics/metrics"
COMMIT_FILES = ("_CHECKPOINT_METADATA", "commit_success.txt")  # that Orbax writes when it commits

DataState = dict[str, np.ndarray]
T = TypeVar("T")


@dataclasses.dataclass(frozen=True)
class CheckpointConfig:
  """When to save and what to keep; a run also saves at its end and when it is interrupted."""

  every: int = 500  # steps; 0 only at the end
  keep: int = 2  # the latest ones
  best: int = 1  # and those with the lowest `metric`
  metric: str = "validation_loss"  # of evaluations; after a minus, the highest is the best: "-dev_accuracy"
  patience: int = 0  # evaluations without a better `metric` after which the run stops; 0 for never

  def __post_init__(self):
    if min(self.every, self.best, self.patience) < 0 or self.keep < 1:
      raise ValueError("every, best and patience are at least 0, keep at least 1")

  def loss(self, scores: Mapping[str, float]) -> float | None:
    """Returns what is lowest at the best checkpoint; None where it was not evaluated."""
    value = scores.get(self.metric.removeprefix("-"))
    return -value if value is not None and self.metric[0] == "-" else value

  def stops(self, losses: Mapping[int, float]) -> bool:
    """Returns whether a run stops: `patience` evaluations, of losses by their steps, came after the best one."""
    return self.patience > 0 and bool(losses) and list(losses)[: -self.patience].count(best_of(losses)) > 0


def best_of(losses: Mapping[int, float]) -> int:
  """Returns the step with the lowest loss, the first of several."""
  return min(losses, key=losses.__getitem__)


class Checkpoints:
  """The checkpoints of one run folder.

  Args:
    may_write: raises UserError if this run may no longer write into the folder; every save calls it, on the first host.
  """

  def __init__(
    self, workdir: epath.Path, settings: CheckpointConfig = CheckpointConfig(), say: Callable[[str], None] = print,
    may_write: Callable[[], None] = lambda: None,
  ):  # fmt: skip
    self.folder = _folder(workdir)
    self._say, self._may_write = say, may_write
    if jax.process_index() == 0:
      self._prepare()
    hosts.wait_for_all("checkpoints checked")
    policies = ocp.training.preservation_policies
    keep = [policies.LatestN(settings.keep)]
    if settings.best:
      keep.append(policies.BestN(get_metric_fn=lambda metrics: metrics["loss"], reverse=True, n=settings.best))
    _quiet()
    seal = ocp.options.AsyncOptions(post_finalization_callback=lambda: self._before_commit())  # a method is copied
    self._checkpointer = ocp.training.Checkpointer(
      self.folder,
      context=ocp.Context(async_options=seal),
      save_decision_policy=ocp.training.save_decision_policies.FixedIntervalPolicy(1),
      preservation_policy=policies.AnyPreservationPolicy(keep),
      cleanup_tmp_directories=True,
    )
    self._saving: tuple[int, Any] | None = None
    self._step = 0  # the one that is being written

  def _prepare(self) -> None:
    """Moves checkpoints whose metadata are corrupt aside: Orbax reads those of all before anything else."""
    for path in _steps(self.folder).values():
      try:
        check(path, metadata=True)
        loss_of(path)
        self._finish(path)
      except UserError as error:
        self._move_aside(path, str(error))

  def _move_aside(self, path: epath.Path, why: str) -> None:
    corrupt = self.folder.parent / "corrupt" / path.name
    corrupt.parent.mkdir(exist_ok=True)
    self._say(f"checkpoint {path} is corrupt, moved to {corrupt} ({why})")
    if corrupt.exists():
      corrupt.rmtree()
    path.rename(corrupt)

  def _before_commit(self) -> None:
    """Writes the checksums of a checkpoint whose files are complete; Orbax calls this on the first host."""
    self._may_write()
    final = self.folder / str(self._step)
    part = final.with_name(final.name + ".orbax-checkpoint-tmp")  # where folders can be renamed
    checksums.save(part if part.exists() else final, COMMIT_FILES)

  def _finish(self, path: epath.Path) -> None:
    """Adds the checksums of the files that the commit wrote; a checkpoint of an older version has none."""
    if (path / checksums.NAME).exists():
      checksums.save(path)

  def steps(self) -> list[int]:
    """Returns the steps of the complete checkpoints, oldest first."""
    return [checkpoint.step for checkpoint in self._checkpointer.checkpoints]

  def save(self, step: int, state: TrainState, data_state: DataState, loss: float | None) -> None:
    """Starts to write a checkpoint and returns as soon as the arrays are copied.

    Raises:
      UserError: the one before could not be written, or this run may no longer write.
    """
    self.wait()
    hosts.together(self._may_write, only_first=True)
    self._step = step
    try:
      response = self._checkpointer.save_checkpointables_async(
        step,
        {"state": state.saved(), "data_state": data_state},
        metrics={"loss": UNKNOWN if loss is None else loss, "checksums": 1},
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
        if jax.process_index() == 0:
          self._finish(self.folder / str(step))
      except Exception as error:
        raise self._failed(step, error) from error

  def _failed(self, step: int, error: Exception) -> UserError:
    good = [s for s in _steps(self.folder) if s != step]
    last = f"the last complete one is step {good[-1]}" if good else "there is no earlier one"
    return UserError(
      f"checkpoint: step {step} could not be written to {self.folder}: {reason(error)}; {last}. "
      "Free some space or choose another --workdir, then rerun the same command to resume"
    )

  def restore(self, state: TrainState, data_state: DataState) -> tuple[TrainState, DataState] | None:
    """Returns the newest whole state, on the shardings of the abstract `state`; None without a checkpoint.

    One that cannot be read is named and skipped, and moved aside if it is corrupt. Its frozen part is that of `state`.

    Raises:
      UserError: there are checkpoints and none can be read.
    """
    steps = self.steps()
    if not steps and any((self.folder.parent / name).exists() for name in CORRUPT):
      raise UserError(
        f"checkpoint: {self.folder} has no complete checkpoint, and {self.folder.parent / 'corrupt'} has corrupt ones; "
        "delete that folder to start from scratch, or choose another --workdir"
      )
    if not steps:
      return None

    def read(folder: epath.Path) -> tuple[dict[str, Tree], DataState]:
      loaded, data = _read(folder, state.saved(), data_state)
      if int(loaded["step"]) != int(folder.name):
        raise ValueError(f"it holds step {int(loaded['step'])}")
      return loaded, data

    _, (loaded, data) = choose(self.folder.parent, None, read, self._skip)
    return state.replace(**loaded), data

  def _skip(self, folder: epath.Path, why: str, corrupt: bool) -> None:
    """Moves a corrupt checkpoint aside, which would count among the latest ones, which are kept."""
    if not corrupt:
      self._say(f"checkpoint {folder} does not fit, skipped ({why})")
    elif jax.process_index() == 0:
      self._move_aside(folder, why)
    hosts.wait_for_all("checkpoint skipped")
    self._checkpointer.reload()

  def close(self) -> None:
    """Waits for the last write."""
    self.wait()
    self._checkpointer.close()


def load(
  workdir: epath.PathLike, wanted: dict[str, Tree], step: int | None = None, checked: bool = False
) -> tuple[dict[str, Tree], int]:
  """Returns parts of a run folder's newest whole (or given) state, such as {"params": ...}, and its step.

  Args:
    wanted: the abstract parts, with the shardings to load them on; nothing else is read.
    checked: its files have been compared with their checksums before.

  Raises:
    UserError: the folder has no checkpoint, not that one, or none that can be read.
  """
  step, (state, _) = choose(workdir, step, lambda folder: _read(folder, wanted), metadata=checked)
  return state, step


def loss_of(folder: epath.Path) -> float:
  """Returns the loss of a checkpoint, UNKNOWN if it was not evaluated; raises UserError where it cannot be read."""
  return Fields(read_json(folder / METRICS), folder / METRICS).number("loss")


def parameters(folder: epath.Path) -> Tree:
  """Returns the metadata of a checkpoint's parameters, no value read: shapes, dtypes, shardings."""
  params = ocp.checkpointables_metadata(folder).metadata["state"]["params"]
  return names.load(NEW_NAMES)({"state": params}, 0)["state"] if _is_old(folder) else params


def check(folder: epath.Path, metadata: bool = False, part: tuple[int, int] = (0, 1)) -> int:
  """Returns how many blocks of a checkpoint were read and are whole: 0 where an older version wrote no checksums.

  Args:
    metadata: do not read the arrays, which are in the folders `d`.

  Raises:
    UserError: the checkpoint is corrupt.
  """
  if (folder / checksums.NAME).exists():
    return checksums.check(folder, COMMIT_FILES, lambda key: not metadata or "/d/" not in key, part)
  if (folder / METRICS).exists() and "checksums" in read_json(folder / METRICS):
    raise UserError(f"{checksums.NAME} is missing")
  return 0


def _quiet() -> None:
  """Keeps the log to what this file reports: Orbax logs every save and every error, the latter in pages."""
  for name in ("absl", "asyncio"):
    logging.getLogger(name).setLevel(logging.CRITICAL)


def _warn(folder: epath.Path, why: str, corrupt: bool) -> None:
  if jax.process_index() == 0:
    print(f"lmjax: checkpoint {folder} is corrupt, skipped ({why})", file=sys.stderr)


def choose(
  workdir: epath.PathLike,
  step: int | None,
  read: Callable[[epath.Path], T],
  skip: Callable[[epath.Path, str, bool], None] = _warn,
  metadata: bool = False,
) -> tuple[int, T]:
  """Returns the step and the content of a run's newest checkpoint that is whole and can be read, or of the given step.

  Args:
    skip: is called for every newer one, with the reason, and whether its files are corrupt.
    metadata: check the metadata only, on each host. Otherwise all hosts check together, each a part.

  Raises:
    UserError: the folder has no checkpoint, not that one, or none that can be read.
  """
  _quiet()
  steps, part = folders(workdir), (0, 1) if metadata else (jax.process_index(), jax.process_count())
  agree = (lambda action: action()) if metadata else hosts.together
  if not steps:
    raise UserError(f"checkpoint: no checkpoint found in {workdir}; train first: lmjax train ... --workdir {workdir}")
  if step is not None and step not in steps:
    raise UserError(f"checkpoint: {workdir} has no step {step}; it has {', '.join(map(str, steps))}")
  chosen = steps if step is None else {step: steps[step]}
  for number, folder in reversed(chosen.items()):
    content: list[T] = []
    corrupt = True
    try:  # Orbax prints pages about files that it cannot read, so all are checked before one is read
      agree(functools.partial(check, folder, metadata, part))
      corrupt = False
      agree(lambda: content.append(read(folder)))  # noqa: B023  # called here
      return number, content[0]
    except Exception as error:  # what a corrupt file of an older version raises depends on where it is corrupt
      why = str(error) if isinstance(error, UserError) else reason(error)
      failure = f"{folder} cannot be read: {why}"
      if len(chosen) > 1:
        skip(folder, why, corrupt)
  if step is None and jax.process_count() == 1 and folders(workdir).keys() - steps.keys():
    return choose(workdir, step, read, skip, metadata)  # a run is writing newer ones, and removes these
  raise UserError(f"checkpoint: {failure if len(chosen) == 1 else f'none of {len(chosen)} can be read; {failure}'}")


def _read(
  folder: epath.Path, state: dict[str, Tree], data: DataState | None = None
) -> tuple[dict[str, Tree], DataState]:
  """Returns parts of the state, and the data state if it is wanted, of a checkpoint, also of one in format 1."""
  old = _is_old(folder)
  wanted: dict[str, Any] = {"state": state} | ({} if data is None else {"data_state": data})
  if old:
    wanted = names.load(OLD_NAMES)(wanted)
  loading = ocp.options.PyTreeOptions.Loading(partial_load=data is None)
  with ocp.Context(pytree_options=ocp.options.PyTreeOptions(loading=loading)):
    items = ocp.load_checkpointables(folder, wanted)
  if old:
    items = names.load(NEW_NAMES)(items, int(folder.name))
  return items["state"], items.get("data_state", {})


def is_checkpoint(path: epath.PathLike) -> bool:
  """Returns whether a folder is itself a checkpoint."""
  return (expand(path) / "state").is_dir()


def folders(path: epath.PathLike) -> dict[int, epath.Path]:
  """Returns {step: folder}, oldest first, of a run folder, or of a folder that is itself a checkpoint."""
  if is_checkpoint(path):
    folder = _folder(path).parent
    return {int(folder.name) if folder.name.isdigit() else 0: folder}
  return _steps(_folder(path))


def _steps(folder: epath.Path) -> dict[int, epath.Path]:
  """Returns {step: folder}, oldest first, of the folder in which a run keeps its checkpoints."""
  paths = {int(path.name): path for path in folder.iterdir() if path.name.isdecimal()} if folder.exists() else {}
  return dict(sorted(paths.items()))


def _folder(workdir: epath.PathLike) -> epath.Path:
  """Returns where a run keeps its checkpoints, as the absolute path that Orbax wants."""
  path = expand(workdir)
  return (path if is_remote(path) else path.absolute()) / "checkpoints"


def data_state(rng: jax.Array, positions: np.ndarray, version: int, collects: int = 0) -> DataState:
  """Returns what a checkpoint keeps besides the state.

  The random key; the positions of the data's streams [streams, integers]; the version of the data; how many batches of
  data have been taken.
  """
  integers = {"positions": positions, "version": version, "collects": collects}
  data = {key: np.asarray(value, np.int64) for key, value in integers.items()}
  return data | {"rng": np.asarray(jax.random.key_data(rng))}


def _is_old(checkpoint: epath.Path) -> bool:
  """Returns whether a checkpoint is in the names of format 1."""
  return (checkpoint / "place").exists()
