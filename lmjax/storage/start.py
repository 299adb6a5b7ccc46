"""Parameters from saved models: those that training starts from, and models that are used without being trained."""

import dataclasses
import re
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from etils import epath

from lmjax.experiment import Experiment, Start
from lmjax.layers.leaves import cast
from lmjax.parallel.sharding import Layout, LogicallyPartitioned, is_partitioned
from lmjax.state import FrozenState, TrainState
from lmjax.storage import base
from lmjax.storage.base import LazyArray, replace_dtype, report_not_finite
from lmjax.tasks.base import Frozen, FrozenModel
from lmjax.utils import names, pytree
from lmjax.utils.errors import UserError, one_line
from lmjax.utils.pytree import Tree


@dataclasses.dataclass(frozen=True)
class Report:
  """What `load` did, by path names."""

  path: str
  step: int | None
  loaded: tuple[str, ...]
  initialised: tuple[str, ...]
  unused: tuple[str, ...]

  def __str__(self) -> str:
    step = "" if self.step is None else f" at step {self.step}"
    loaded = f"loaded {len(self.loaded)} parameters from {self.path}{step}" if self.path else "from scratch"
    lines = [f"start: {loaded}"]
    if self.initialised:
      lines.append(f"  newly initialised: {_join(self.initialised)}")
    if self.unused:
      lines.append(f"  not used from {self.path}: {_join(self.unused)}")
    return "\n".join(lines)


def load(start: Start, named: Tree, layout: Layout) -> tuple[dict[str, jax.Array], Report]:
  """Returns the parameters that a run starts from, on their shardings, and a report.

  Args:
    named: the abstract LogicallyPartitioned parameters of the new model, {"model": ..., "heads": ...}.

  Returns:
    {path name: array} of the loaded parameters; those that are missing are to be initialised.

  Raises:
    UserError: a parameter is in the source with another shape, or is not loaded and does not match `start.new`.
  """
  boxes: dict[str, LogicallyPartitioned] = pytree.named_leaves(named, is_leaf=is_partitioned)
  if not start.path:
    return {}, Report("", None, (), tuple(boxes), ())
  saved = base.open(start.path, start.step)
  saved = names.load("lmjax.storage.chosen_layers:ChosenLayers")(saved, start.layers) if start.layers else saved
  source = saved.parameters()
  wanted = {name: box for name, box in boxes.items() if name in source and re.search(start.parts, name)}
  if missing := [name for name in boxes if name not in wanted and not re.search(start.new, name)]:
    excluded = [name for name in missing if name in source]
    reason = f"config.start.parts={start.parts!r} excludes" if excluded else f"{start.path} does not have"
    raise UserError(
      f"start: {reason} {_join(excluded or missing)}; to initialise such parameters instead, extend "
      f"config.start.new={start.new!r}"
    )
  if not wanted:
    raise UserError(f"start: config.start.parts={start.parts!r} matches no parameter of {start.path} and this model")
  for name, box in wanted.items():
    _check_shape(name, source[name], box, start.path)
  initialised = tuple(name for name in boxes if name not in wanted)
  unused = tuple(name for name in source if name not in wanted)
  arrays = saved.arrays(wanted, layout)
  report_not_finite(arrays, start.path)
  if start.new_layers:
    arrays = names.load("lmjax.storage.new_layers:keep_bottom")(arrays, start.new_layers)
    initialised += (f"the top {start.new_layers} layers",)
  return arrays, Report(start.path, saved.step, tuple(wanted), initialised, unused)


def _check_shape(name: str, array: LazyArray, box: LogicallyPartitioned, path: str) -> None:
  """Raises UserError where shapes differ in more than the padding of a vocabulary."""
  shape, rows = tuple(box.value.shape), getattr(array, "rows", None)
  if rows is None and tuple(array.shape) == shape:
    return
  true_shapes = [_unpad(tuple(array.shape), rows), _unpad(shape, box.rows)]
  if true_shapes[0] != true_shapes[1]:
    stored, expected = ("x".join(map(str, sizes)) for sizes in true_shapes)
    raise UserError(
      f"start: {name} has shape {stored} in {path} and {expected} in this model; to initialise it instead, exclude it "
      "by config.start.parts and match it by config.start.new"
    )


def _unpad(shape: tuple[int, ...], rows: int | None) -> tuple[int, ...]:
  return shape if rows is None else (rows, *shape[1:])


def _join(names: Sequence[str], most: int = 4) -> str:
  return one_line(", ".join(names[:most])) + (f" and {len(names) - most} more" if len(names) > most else "")


def load_frozen(frozen: Frozen, layout: Layout, abstract: bool = False) -> FrozenModel:
  """Returns a frozen model, sharded by the rules of a layout; each device reads its own slice.

  Args:
    abstract: return shapes, dtypes and shardings only; the parameters are not read.

  Raises:
    UserError: there is no saved model at the path.
  """
  saved = base.open(frozen.path, frozen.step)
  named = jax.eval_shape(lambda params: cast(params, jnp.dtype(frozen.dtype)), saved.named)
  params = layout.abstract(named) if abstract else saved.arrays(named, layout)
  if not abstract:
    report_not_finite(params, frozen.path)
  return FrozenModel(replace_dtype(saved.task, frozen.dtype), params)


def attach_sources(
  run: Experiment, workdir: epath.PathLike | None = None, new: bool = False, abstract: bool = False
) -> Experiment:
  """Returns a run with the frozen models of its task, and with `start` at the path where its source lies now.

  A run whose parameters are saved no longer needs what it started from, unless its transform keeps it frozen.

  Args:
    workdir: the run folder, whose sources.json is checked, or written if the run is new.
    abstract: load shapes, dtypes and shardings only.

  Raises:
    UserError: a source is missing or has changed.
  """
  sources: dict[str, Start | Frozen] = dict(run.task.frozen())
  if run.start.path and (new or jax.tree.leaves(run.state(abstract=True).frozen.transform)):
    sources["start"] = run.start
  if sources and workdir is not None:
    sources = dict(names.load("lmjax.storage.sources:recorded")(workdir, sources, new))
  start = sources.pop("start", run.start)
  models = {name: load_frozen(frozen, run.layout, abstract) for name, frozen in sources.items()}
  return dataclasses.replace(run, start=start, models=models)


def with_frozen(run: Experiment, state: TrainState) -> TrainState:
  """Returns a restored state with its frozen part: the models of the task, and what the transform keeps frozen.

  The latter is made again from the weights that the run started from, or from its seed.
  """
  transform = state.frozen.transform
  if jax.tree.leaves(transform):
    transform = run.frozen(load(run.start, run.named, run.layout)[0], state)
  return state.replace(frozen=FrozenState(transform, run.models))
