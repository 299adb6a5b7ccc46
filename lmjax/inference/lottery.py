"""The lottery ticket hypothesis: masks of one round from the weights of the one before, starting points, and a plot."""

import copy
import dataclasses
import functools
import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from scipy.special import stdtrit

from lmjax import experiment as experiments
from lmjax.compression import masks
from lmjax.compression.method import check_pattern
from lmjax.inference.table import DisplayTable
from lmjax.logs import read_metrics
from lmjax.parallel.sharding import LogicallyPartitioned, is_partitioned
from lmjax.storage import compressed
from lmjax.storage.run import RunFolder
from lmjax.storage.start import load
from lmjax.utils import files, pytree
from lmjax.utils.errors import UserError, one_line

SETTINGS = "settings.json"  # what the masks of a folder depend on
TICKET, CONTROLS, DENSE = "ticket", ("new_weights", "random_mask"), "dense"
Arrays = dict[str, jax.Array]


@dataclasses.dataclass(frozen=True)
class Rates:
  """The fraction of the remaining weights of each kernel that a round removes.

  rates: by regular expressions that are searched in the paths of kernels; the first that matches counts. structure:
  `layer` ranks the weights of each layer, `global` those of all kernels together, which needs a single rate.
  """

  rates: tuple[tuple[str, float], ...]
  structure: str = "layer"

  def __post_init__(self):
    if self.structure not in ("layer", "global"):
      raise ValueError(f"the structure is layer or global, not {self.structure!r}")
    if self.structure == "global" and len(self.rates) > 1:
      raise ValueError("a global ranking has a single rate")
    for pattern, rate in self.rates:
      check_pattern(pattern)
      if not 0 < rate < 1:
        raise ValueError(f"a rate is above 0 and below 1, not {rate} for {pattern!r}")

  @classmethod
  def parse(cls, given: Sequence[str], structure: str) -> "Rates":
    """Returns the rates of options `PATTERN=RATE` or `RATE`; 0.2 of all kernels where there are none.

    Raises:
      UserError: one of them is not a rate.
    """
    try:
      parts = (text.rpartition("=") for text in given)
      return cls(tuple((at or "^model/", float(rate)) for at, _, rate in parts) or (("^model/", 0.2),), structure)
    except ValueError as error:
      raise UserError(f"lottery: --rate: {error}") from error

  def of(self, name: str) -> float | None:
    """Returns the rate of a kernel; None where it is not pruned."""
    if not name.endswith("kernel"):
      return None
    return next((rate for pattern, rate in self.rates if re.search(pattern, name)), None)

  def kernels(self, names: Iterable[str]) -> dict[str, float]:
    """Returns the rates of the kernels among some parameters.

    Raises:
      UserError: no kernel matches.
    """
    rates = {name: rate for name in names if (rate := self.of(name)) is not None}
    if not rates:
      kernels = one_line(", ".join(name for name in names if name.endswith("kernel")))
      raise UserError(f"lottery: the rates match no kernel; those of this model: {kernels}")
    return rates

  def masks(self, boxes: Mapping[str, LogicallyPartitioned], weights: Arrays, rounds: int) -> Arrays:
    """Returns which weights remain after some rounds: those with the largest magnitude, a zero being the smallest.

    Raises:
      UserError: no kernel matches.
    """
    rates = self.kernels(boxes)
    scores = {name: jnp.abs(weights[name]) for name in rates}
    lost = {name: 1 - (1 - rate) ** rounds for name, rate in rates.items()}
    if self.structure == "global":
      return {name: ~gone for name, gone in masks.removed_globally(scores, next(iter(lost.values()))).items()}
    return {name: ~masks.removed(scores[name], boxes[name].names, "layer", lost[name]) for name in rates}


def check_before(settings: Mapping[str, Any], rates: Rates, metric: str) -> None:
  """Raises UserError where no kernel of a config's model has a rate, or no evaluator logs the metric."""
  built = experiments.build(copy.deepcopy(dict(settings)), None, jax.devices())
  rates.kernels(pytree.named_leaves(built.named, is_leaf=is_partitioned))
  if not any(metric.removeprefix("-").startswith(f"{name}_") for name in built.evaluators):
    known = ", ".join(f"{name}_..." for name in built.evaluators) or "none"
    raise UserError(f"lottery: --metric {metric} is not one of the config's evaluators, which log {known}")


def settings_of(workdir: epath.Path, rates: Rates, rewind: int) -> Callable[[], None]:
  """Returns what writes settings.json, with what the masks of all rounds depend on, to be called after a run.

  Raises:
    UserError: the folder has runs of other settings.
  """
  file = workdir / SETTINGS
  now = {"rates": [list(rate) for rate in rates.rates], "structure": rates.structure, "rewind": rewind}
  if file.exists() and (before := files.read_json(file)) != now:
    raise UserError(f"lottery: {workdir} has runs of {before}, not of {now}; give these, or choose another --workdir")
  return lambda: files.write(file, json.dumps(now, indent=2) + "\n")


def weights_of(run: epath.PathLike, step: int | None = None) -> Arrays:
  """Returns the parameters of a run at a step, the latest by default, by path names."""
  return {name: jnp.asarray(np.asarray(array)) for name, array in RunFolder(run, step).parameters().items()}


@functools.lru_cache(maxsize=1)  # all arms of a round have one mask
def masks_after(run: epath.Path, rates: Rates, rounds: int) -> Arrays:
  """Returns the masks of a round, from the final weights of the run of the round before."""
  boxes = pytree.named_leaves(RunFolder(run).named, is_leaf=is_partitioned)
  return rates.masks(boxes, weights_of(run), rounds)


def new_weights(settings: Mapping[str, Any], run: epath.PathLike, scratch: bool = False) -> Arrays:
  """Returns the parameters that a run of a config starts with: those of its `start`, or from its seed.

  Args:
    run: whose folder has the tokenizer.
    scratch: all of them from its seed, whatever `start` says.
  """
  built = experiments.build(copy.deepcopy(dict(settings)), run)
  use = built.start.path and not scratch
  loaded = load(built.start, built.named, built.layout)[0] if use else {}
  return pytree.named_leaves(built.init()[0](loaded).params)


def write_start(
  folder: epath.Path, dense: epath.PathLike, arm: str, weights: Arrays, kept: Arrays, fresh: Arrays, seed: int
) -> None:
  """Writes the model that an arm of a round starts from, unless it is there.

  Args:
    dense: the run without a mask, whose model this is.
    arm: `ticket` is `weights` with the mask, `new_weights` are `fresh` ones with it, and `random_mask` is `weights`
      with as many zeros in each layer at other places.
  """
  if folder.exists():
    return
  saved = RunFolder(dense)
  boxes = pytree.named_leaves(saved.named, is_leaf=is_partitioned)
  params = dict(fresh if arm == "new_weights" else weights)
  for name, mask in kept.items():
    mask = _shuffled(mask, boxes[name].names, name, seed) if arm == "random_mask" else mask
    params[name] = jnp.where(mask, params[name], 0.0)
  compressed.save(
    folder, saved, params, {"source": str(dense), "methods": [], "lottery": {"arm": arm, "seed": seed}}, {}
  )


def _shuffled(mask: jax.Array, names: tuple[str | None, ...], name: str, seed: int) -> jax.Array:
  """Returns a mask with the ones of each layer at random places."""
  scores = masks.random_scores(name, mask.shape, seed)
  rows = masks.matrices(mask, names).reshape(mask.shape[0] if names[0] == "layers" else 1, -1)
  order = jnp.argsort(scores.reshape(rows.shape), axis=1)
  return jnp.take_along_axis(rows, order, axis=1).reshape(mask.shape)


def remaining(kept: Arrays) -> float:
  """Returns the fraction of weights that a mask keeps; 1 without a mask."""
  return (
    float(sum(int(mask.sum()) for mask in kept.values()) / sum(mask.size for mask in kept.values())) if kept else 1.0
  )


def curve(run: epath.PathLike, metric: str) -> dict[int, float]:
  """Returns the values of a metric by steps, as a run has logged them.

  Raises:
    UserError: it has not.
  """
  name = metric.removeprefix("-")
  values = {int(line["step"]): line[name] for line in read_metrics(epath.Path(run)) if name in line}
  if not values:
    raise UserError(f"lottery: {run} has not logged {metric}; give --metric, one that an evaluator of the config logs")
  return values


def better(metric: str) -> Callable[..., float]:
  """Returns max for a metric whose highest value is the best, which a minus precedes, and min for a loss."""
  return max if metric.startswith("-") else min


def steps_to(values: Mapping[int, float], limit: float, metric: str = "") -> int | None:
  """Returns the first step at which a loss is at or below a limit, or another metric at or above it; None if never."""
  return next((step for step, value in values.items() if better(metric)(value, limit) == value), None)


def comparison(rows: Sequence[Mapping[str, Any]], metric: str) -> DisplayTable:
  """Returns the mean final loss of each arm over the seeds, and how far each control is above the ticket.

  The differences are paired by seed, with the half of their 95 % interval by Student's t.

  Args:
    rows: see `plot`.
  """
  controls = [arm for arm in dict.fromkeys(row["arm"] for row in rows) if arm not in (TICKET, DENSE)]
  losses: dict[tuple[int, str], dict[int, float]] = {}
  shares: dict[int, list[float]] = {}
  for row in rows:
    losses.setdefault((row["round"], row["arm"]), {})[row["seed"]] = row["loss"]
    shares.setdefault(row["round"], []).append(row["remaining"])
  lines = []
  for number, kept in shares.items():
    ticket = losses[number, TICKET if number else DENSE]
    cells = [f"{float(np.mean(kept)):.1%}", f"{float(np.mean(list(ticket.values()))):.4f}"]
    for arm in controls:
      other = losses.get((number, arm), {})
      change = np.array([other[seed] - ticket[seed] for seed in other if seed in ticket])
      cells.append(f"{float(np.mean(list(other.values()))):.4f}" if other else "")
      cells.append(_with_interval(change) if other else "")
    lines.append((str(number), *cells))
  names = tuple(name for arm in controls for name in (arm, "above the ticket"))
  return DisplayTable(
    f"{metric}: means of {len({row['seed'] for row in rows})} seeds",
    ("round", "weights", TICKET, *names),
    tuple(lines),
  )


def _with_interval(change: np.ndarray) -> str:
  if len(change) < 2:
    return f"{change.mean():+.4f}"
  half = stdtrit(len(change) - 1, 0.975) * change.std(ddof=1) / len(change) ** 0.5
  return f"{change.mean():+.4f} +- {half:.4f}"


def plot(rows: Sequence[Mapping[str, Any]], metric: str, file: epath.Path) -> None:
  """Draws the final loss, and the steps to the dense model's, over the remaining weights: means and extremes of seeds.

  There is no point where a seed does not get to the loss of the dense model.

  Args:
    rows: one for each seed, round and arm: `arm`, `remaining`, `loss`, `steps`.
  """
  from matplotlib.figure import Figure

  figure = Figure(figsize=(10, 4), layout="constrained")
  for axes, key, label in zip(
    figure.subplots(1, 2),
    ("loss", "steps"),
    (metric, "steps to that of the dense model"),
    strict=True,
  ):
    for arm in dict.fromkeys(row["arm"] for row in rows if row["arm"] != DENSE):
      points: dict[float, list[Any]] = {}
      for row in rows:
        if row["arm"] in (arm, DENSE):
          points.setdefault(round(row["remaining"], 4), []).append(row[key])
      x = sorted((share for share, values in points.items() if None not in values), reverse=True)
      axes.plot(x, [np.mean(points[value]) for value in x], "o-", label=arm.replace("_", " "), markersize=3)
      axes.fill_between(x, [min(points[v]) for v in x], [max(points[v]) for v in x], alpha=0.2)
    axes.set(xscale="log", xlabel="remaining weights", ylabel=label)
    least = min(row["remaining"] for row in rows)
    ticks = [share for share in (1.0, 0.5, 0.2, 0.1, 0.05, 0.02, 0.01, 0.001) if share >= least] or [1.0]
    axes.set_xticks(ticks, [f"{share:.1%}".replace(".0", "") for share in ticks])
    axes.minorticks_off()
    axes.invert_xaxis()
    axes.grid(alpha=0.3)
    if axes.lines:
      axes.legend()
  with files.replacing(file) as part:
    figure.savefig(part, format="png", dpi=120)
