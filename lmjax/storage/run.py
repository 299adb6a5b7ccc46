"""Run folders, and single checkpoints inside or outside of one."""

import copy
import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from etils import epath
from flax import traverse_util

from lmjax import checkpoint
from lmjax import config as configs
from lmjax import experiment as experiments
from lmjax.compression.base import Identity
from lmjax.data.tokenizers.base import Tokenizer
from lmjax.experiment import Experiment
from lmjax.layers.leaves import dense_tree
from lmjax.optim import averaged
from lmjax.parallel.sharding import Layout, LogicallyPartitioned, is_partitioned
from lmjax.state import TrainState
from lmjax.storage.base import BEST, LazyArray, Leaf, LoadedModel, SavedModel, Step
from lmjax.storage.start import attach_sources, with_frozen
from lmjax.tasks.base import Task
from lmjax.tasks.distill import Distill
from lmjax.utils import checksums, pytree, trust
from lmjax.utils.errors import UserError
from lmjax.utils.files import expand
from lmjax.utils.pytree import Tree


@dataclasses.dataclass
class Deferred:
  """A parameter that is read whole, the first time any of it is needed."""

  shape: tuple[int, ...]
  dtype: np.dtype
  rows: int | None
  read: Callable[[], np.ndarray]

  @functools.cached_property
  def _values(self) -> np.ndarray:
    return self.read()

  def __getitem__(self, index: Any) -> np.ndarray:
    return self._values[index]

  def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
    return self._values.astype(dtype or self.dtype, copy=False)


class RunFolder(SavedModel):
  """A run folder at one of its checkpoints, or a checkpoint; one outside of a run folder has parameters but no task."""

  def __init__(self, path: epath.PathLike, step: Step = None):
    self.path, self._whole = expand(path), False
    is_checkpoint = checkpoint.is_checkpoint(path)
    self.folder = self.path.absolute().parent.parent if is_checkpoint else self.path  # of the run
    self._step = best_step(self.folder) if step == BEST else step

  @functools.cached_property
  def _metadata(self) -> tuple[Tree, int]:
    return checkpoint.choose(self.path, self._step, checkpoint.parameters, metadata=True)[::-1]

  @property
  def step(self) -> int:
    return self._metadata[1]

  @functools.cached_property
  def config(self) -> dict[str, Any]:
    if self.folder != self.path and not (self.folder / "config.json").exists():
      raise UserError(f"{self.path} is a checkpoint without a config; only its metadata and arrays can be read")
    with trust.trusting(*self.trusted):
      return experiments.load_config(self.folder)

  @functools.cached_property
  def experiment(self) -> Experiment:
    """The parts of the run, on a mesh of all devices of this machine."""
    with trust.trusting(*self.trusted):
      return build(self.config | {"mesh": {}}, self.folder)

  @property
  def task(self) -> Task:
    return self.experiment.task

  @property
  def tokenizer(self) -> Tokenizer:
    return self.experiment.tokenizer

  @property
  def named(self) -> Tree:
    return self.experiment.named

  @functools.cached_property
  def _boxes(self) -> dict[str, LogicallyPartitioned]:
    """The model's named parameters; empty where the config is missing or cannot be built on this machine."""
    try:
      return pytree.named_leaves(self.named, is_leaf=is_partitioned)
    except trust.UntrustedError:
      raise
    except UserError:
      return {}

  @functools.cached_property
  def leaves(self) -> dict[str, Leaf]:
    leaves = {}
    for name, leaf in pytree.named_leaves(self._metadata[0]).items():
      spec = getattr(getattr(leaf, "sharding_metadata", None), "partition_spec", None) or ()
      split = ", ".join(str(axis) for axis in spec if axis)
      axes = self._boxes[name].names if name in self._boxes else ()
      axes = ", ".join(map(str, axes)) if len(axes) == len(leaf.shape) else ""
      leaves[name] = Leaf(name, tuple(leaf.shape), np.dtype(leaf.dtype).name, split, axes)
    return leaves

  def _choose(self, alone: bool = False) -> None:
    """Checks the files before the first is read: of the given step, or of the newest one whose files are whole.

    Args:
      alone: other hosts do not call this.
    """
    if not self._whole:
      check = checkpoint.check if alone else lambda folder: None
      self._stay_at(checkpoint.choose(self.path, self._step, check, metadata=alone)[0])

  def _stay_at(self, step: int) -> None:
    """Stays at a checkpoint; the metadata may have been those of a newer one, whose parameters are corrupt."""
    self._step, self._whole = step, True
    if vars(self).get("_metadata", (None, step))[1] != step:
      del self._metadata
      vars(self).pop("leaves", None)

  def read(self, name: str) -> np.ndarray:
    self._choose()
    leaf, device = self.leaves[name], jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    return np.asarray(self._restore({name: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=device)})[name])

  def _restore(self, wanted: dict[str, jax.ShapeDtypeStruct]) -> dict[str, jax.Array]:
    """Returns some of the trained parameters, on their shardings."""
    tree = {"params": traverse_util.unflatten_dict(wanted, sep="/")}
    restored, _ = checkpoint.load(self.path, tree, self.step, checked=self._whole)
    return pytree.named_leaves(restored["params"])

  @property
  def _is_plain(self) -> bool:
    """Whether the trained parameters are those that the model uses."""
    if not (self.folder / "config.json").exists():
      return True
    return type(self.experiment.transform) is Identity and not self.experiment.optimizer.ema

  @functools.cached_property
  def _merged(self) -> dict[str, jax.Array]:
    return self._merge(self.experiment)

  def _read_merged(self, name: str) -> np.ndarray:
    return np.asarray(self._merged[name])

  def _merge(self, run: Experiment) -> dict[str, jax.Array]:
    with trust.trusting(*self.trusted):
      run = attach_sources(run, self.folder)
      state, step = load_state(run, self.path, self._step)
      self._stay_at(step)
      state = with_frozen(run, state)
    return pytree.named_leaves(merged(run, state))

  def state(self) -> tuple[Experiment, TrainState]:
    """Returns the run and its state at this checkpoint, without what the transform keeps frozen."""
    with trust.trusting(*self.trusted):
      state, step = load_state(self.experiment, self.path, self._step)
    self._stay_at(step)
    return self.experiment, state

  def parameters(self) -> dict[str, LazyArray]:
    if self._is_plain:
      self._choose()
      return {
        name: Deferred(
          leaf.shape,
          np.dtype(leaf.dtype),
          getattr(self._boxes.get(name), "rows", None),
          functools.partial(self.read, name),
        )
        for name, leaf in self.leaves.items()
      }
    return {
      name: Deferred(box.value.shape, box.value.dtype, box.rows, functools.partial(self._read_merged, name))
      for name, box in self._boxes.items()
    }

  def arrays(self, named: Tree, layout: Layout) -> Tree:
    """Returns parameters on their shardings; averages and transforms are merged there. See SavedModel.arrays."""
    shapes = {name: array.shape for name, array in self.parameters().items()}
    abstract = pytree.named_leaves(layout.abstract(named))
    wanted = {name: leaf for name, leaf in abstract.items() if shapes[name] == leaf.shape}  # else its padding differs
    if self._is_plain:
      arrays = self._restore(wanted) if wanted else {}
    else:
      experiment = dataclasses.replace(self.experiment, layout=layout)
      merged = self._merge(experiment)
      arrays = {name: jax.device_put(merged[name].astype(leaf.dtype), leaf.sharding) for name, leaf in wanted.items()}
    read = super().arrays

    def leaf(name: str, box: LogicallyPartitioned) -> jax.Array:
      return arrays[name] if name in arrays else read({name: box}, layout)[name]

    return pytree.map_named(leaf, named, is_leaf=is_partitioned)

  def load(self, dtype: str | None = None, overrides: dict[str, str] | None = None) -> LoadedModel:
    settings = copy.deepcopy(self.config) | {"mesh": {}}
    for key, text in (overrides or {}).items():
      configs.override(settings, key, text)
    if dtype:
      settings["model"]["dtype"] = dtype
    with trust.trusting(*self.trusted):
      run = attach_sources(build(settings, self.folder), self.folder)
      state, step = load_state(run, self.path, self._step)
      params = merged(run, with_frozen(run, state))
    return LoadedModel(run.task, run.tokenizer, run.data.length, run.layout, params, step, settings, run)

  def files(self) -> dict[str, epath.Path]:
    if self._step is None:
      self._choose(alone=True)
    is_checkpoint = self.folder != self.path
    state = (self.path if is_checkpoint else self.path / "checkpoints" / str(self.step)) / "state"
    return {f"state/{name}": file for name, file in checksums.walk(state).items()}


def build(settings: dict[str, Any], folder: epath.PathLike) -> Experiment:
  """Returns the experiment of a run folder as its model is used: without a teacher, which only training needs."""
  run = experiments.build(settings, folder)
  return dataclasses.replace(run, task=run.task.task) if isinstance(run.task, Distill) else run


def merged(run: Experiment, state: TrainState) -> Tree:
  """Returns the model's parameters as arrays: averaged and merged, where the run does that."""
  params = averaged(state.opt_state, state.params)
  return dense_tree(run.transform.merge(params, state.transform, state.frozen.transform))


def load_state(run: Experiment, path: epath.PathLike, step: int | None) -> tuple[TrainState, int]:
  """Returns a state with only what the model's parameters depend on loaded, and its step; the frozen part is not."""
  state = run.state(abstract=True)
  names = ("params", "opt_state", "transform") if run.optimizer.ema else ("params", "transform")
  parts, step = checkpoint.load(path, {name: getattr(state, name) for name in names}, step)
  return state.replace(**parts), step


def best_step(workdir: epath.PathLike) -> int:
  """Returns the step of a run folder's checkpoint with the lowest validation loss.

  Raises:
    UserError: no checkpoint was evaluated, or the metadata of one are corrupt, so that the best is not known.
  """
  losses: dict[int, float] = {}
  for step, folder in checkpoint.folders(workdir).items():
    try:
      checkpoint.check(folder, metadata=True)
      losses[step] = checkpoint.loss_of(folder)
    except UserError as error:
      raise UserError(f"checkpoint: the best is not known: {folder} is corrupt: {error}; give its --step") from error
  if not losses or min(losses.values()) >= checkpoint.UNKNOWN:
    raise UserError(f"checkpoint: {workdir} has no checkpoint with a validation loss")
  return checkpoint.best_of(losses)
