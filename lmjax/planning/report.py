"""The report of `lmjax plan`: memory, FLOPs, communication and a lower bound on the time of a step, as plain data."""

import bisect
import copy
import dataclasses
import math
import time
from collections.abc import Callable
from typing import Any

import jax

from lmjax import config, experiment
from lmjax.compression.base import Identity
from lmjax.experiment import Experiment
from lmjax.models.active import active_parameters
from lmjax.parallel.mesh import MORE_SHARDS
from lmjax.parallel.sharding import use_layout
from lmjax.planning.aot import Compiled, Topology, compile_step
from lmjax.planning.estimate import estimate, executed_flops, stored_bytes
from lmjax.planning.flops import FORMULA, Flops, train_step_flops
from lmjax.planning.rollouts import parts_of
from lmjax.state import TrainState
from lmjax.storage.start import attach_sources
from lmjax.utils.errors import UserError

JitStep = Callable[[Experiment, TrainState], Any]  # `lmjax.train.jit_step`


def plan(
  settings: dict[str, Any], target: Topology, jit_step: JitStep, vocabulary: int | None, fit: bool,
  made: Callable[[dict[str, Any]], object],
) -> dict[str, Any]:  # fmt: skip
  """Returns the report of a config; where its step does not fit, `would_fit` has the overrides with which it would.

  Args:
    fit: the largest batch that fits, instead of the config's.
    made: is called with each report.
  """

  def report_of(settings: dict[str, Any]) -> dict[str, Any]:
    report = make_report(settings, target, jit_step, vocabulary)
    made(report)
    return report

  if fit:
    return find_largest_batch(settings, target, vocabulary, report_of)
  report = report_of(settings)
  more = {} if report["fits"] else {"would_fit": alternatives(settings, lambda changed: report_of(changed)["fits"])}
  return report | more


def make_report(
  settings: dict[str, Any], target: Topology, jit_step: JitStep, vocabulary: int | None = None
) -> dict[str, Any]:
  """Returns the report of one training step of a config on absent devices.

  Args:
    settings: the config, as plain data.
    jit_step: makes the step that is compiled; not called if there is no compiler for the target.
    vocabulary: the number of token ids, if the config's tokenizer is not available.

  Raises:
    UserError: the config does not fit the devices, or the target's compiler is not installed.
  """
  start = time.perf_counter()
  run = _build(settings, target, vocabulary)
  capacity = target.chip.memory if target.chip else math.inf
  compiled = _compile(run, target, jit_step, capacity, start) if target.compiles else estimate(run, capacity)
  useful = train_step_flops(run.task, run.batch, run.data.length, run.models)
  with use_layout(run.layout):
    parts = parts_of(run, target, capacity) if target.compiles else {}
  report = {
    "parameters": run.parameters,
    "active": active_parameters(run.named, run.task.model.config),
    "trained": _trained(run),
    "topology": f"{target.name}:{'x'.join(map(str, target.grid)) or target.count}",
    "num_slices": target.slices,
    "devices": target.count,
    "mesh": dict(run.layout.mesh.shape),
    "batch": run.rows,
    "batch_per_device": run.rows / target.count,
    "length": run.data.length,
    "method": "compiled" if target.compiles else "counted: no compiler for absent devices of this kind",
    "bytes_per_device": {
      "arguments": compiled.arguments,
      "temporaries": compiled.temporaries,
      "output": compiled.output,
      "total": compiled.total,
      "capacity": None if math.isinf(capacity) else int(capacity),
    },
    "fits": compiled.fits and all(part.fits for part, _ in parts.values()),
    "flops_per_step": {"full_attention": useful.full, "causal_attention": useful.causal, "formula": FORMULA},
    "collectives": compiled.collectives,
    "compile_seconds": round(compiled.seconds, 1),
  } | _least_time(run, target, compiled, useful)
  return report | (_with_rollouts(run, report, compiled, parts) if parts else {})


def _with_rollouts(run: Experiment, report: dict[str, Any], update: Compiled, parts: dict[str, Any]) -> dict[str, Any]:
  """Returns what changes in a report where each rollout is written and scored before some updates.

  A step is an update with its share of the rollout; `seconds_of` and the rest describe the update alone.
  """
  task: Any = run.task
  updates = task.minibatches * task.epochs
  learning = {"bytes_per_device": update.total, "fits": update.fits, "per_rollout": updates}
  learning |= {"seconds": report["seconds_per_step"], "bound_by": report["bound_by"]}
  own = {"learning": learning}
  for name, (compiled, seconds) in parts.items():
    bound_by, least = max(seconds, key=seconds.get), max(seconds.values())
    own[name] = {"bytes_per_device": compiled.total, "fits": compiled.fits, "seconds": least, "bound_by": bound_by}
    own[name] |= {"per_rollout": task.minibatches if name == "scoring" else 1}
  total = sum(part["seconds"] * part["per_rollout"] for part in own.values())
  return {"parts": own, "seconds_per_step": total / updates}


def find_largest_batch(
  settings: dict[str, Any], target: Topology, vocabulary: int | None, report: Callable[[dict[str, Any]], dict[str, Any]]
) -> dict[str, Any]:
  """Returns the report of the largest batch that fits, a multiple of the batch's shards times the microbatches.

  If not even the smallest such batch fits, its report is returned.

  Args:
    target: devices whose memory is known.
    report: returns the report of a config.
  """
  run = _build(settings, target, vocabulary)
  rows = run.layout.num_shards("batch") * run.optimizer.microbatches
  reports: dict[int, dict[str, Any]] = {}

  def fits(times: int) -> bool:
    if times not in reports:
      reports[times] = report(settings | {"batch": times * rows})
    return reports[times]["fits"]

  if not fits(1) or not fits(2):
    return reports[1]
  # Memory grows nearly linearly with the batch, so the search starts close to the answer.
  one, two = (reports[times]["bytes_per_device"]["total"] for times in (1, 2))
  best = max(int((reports[1]["bytes_per_device"]["capacity"] - one) / max(two - one, 1)) + 1, 2)
  while not fits(best):
    best -= 1
  while fits(best + 1):
    best += 1
  return reports[best]


def alternatives(settings: dict[str, Any], fits: Callable[[dict[str, Any]], bool]) -> list[str]:
  """Returns the overrides with which a step that does not fit would: microbatches, remat, more shards, or together.

  Args:
    fits: whether the step of a config fits, which may take minutes; a UserError says that the config is not possible.
  """
  microbatches = [{"optim.microbatches": str(n)} for n in (2, 4, 8, 16, 32, 64) if settings["batch"] % n == 0]
  remat = [{"model.remat": "full"}] if settings["model"].get("remat", "none") == "none" else []
  together = {**MORE_SHARDS, **(remat[0] if remat else {}), **(microbatches[-1] if microbatches else {})}
  kinds = microbatches, remat, [MORE_SHARDS], [together] if together != MORE_SHARDS else []
  fitting = (_first_that_fits(settings, kind, fits) for kind in kinds)
  return [" ".join(f"--config.{key}={value}" for key, value in changes.items()) for changes in fitting if changes]


def _first_that_fits(
  settings: dict[str, Any], several: list[dict[str, str]], fits: Callable[[dict[str, Any]], bool]
) -> dict[str, str] | None:
  """Returns the first of several overrides, each of which needs less memory than those before, with which a step fits.

  Later ones may be impossible, as more microbatches than rows are.
  """
  tried: dict[int, bool] = {}

  def enough(i: int) -> bool:
    changed = copy.deepcopy(settings)
    for key, value in several[i].items():
      config.override(changed, key, value)
    try:
      tried[i] = fits(changed)
    except UserError:
      tried[i] = False
      return True
    return tried[i]

  first = bisect.bisect_left(range(len(several)), True, key=enough)
  return several[first] if tried.get(first) else None


def _build(settings: dict[str, Any], target: Topology, vocabulary: int | None) -> Experiment:
  """Returns the experiment on absent devices, or on copies of a CPU device if there is no compiler for them."""
  devices = target.devices() if target.compiles else [jax.devices("cpu")[0]] * target.count
  return attach_sources(experiment.build(settings, devices=devices, vocabulary=vocabulary), abstract=True)


def _compile(run: Experiment, target: Topology, jit_step: JitStep, capacity: float, start: float) -> Compiled:
  with use_layout(run.layout):
    state = run.state(abstract=True)
    batch = run.layout.abstract_batch(run.task.spec(run.batch, run.data.length))
    key = jax.eval_shape(lambda: jax.random.key(0))
    rng = jax.ShapeDtypeStruct(key.shape, key.dtype, sharding=run.layout.sharding())
    return compile_step(jit_step(run, state).lower(*state.split(), batch, rng), capacity, target.slices, start)


def _trained(run: Experiment) -> dict[str, int]:
  """Returns how many parameters are trained, and the bytes per device of the state, here and if all were trained."""
  with use_layout(run.layout):
    states = [each.state(abstract=True) for each in (run, dataclasses.replace(run, transform=Identity()))]
  here, full = (sum(map(stored_bytes, jax.tree.leaves((state.saved(), state.frozen)))) for state in states)
  return {"parameters": run.trained, "state_bytes": here, "full_state_bytes": full}


def _least_time(run: Experiment, target: Topology, compiled: Compiled, useful: Flops) -> dict[str, Any]:
  """Returns a lower bound on the seconds of a step: the slowest of its parts, as if the others overlapped with it."""
  chip = target.chip
  if chip is None:
    return {"seconds_per_step": None, "utilisation_bound": None, "bound_by": None, "seconds_of": {}}
  executed = executed_flops(run).executed(run.task.model.causal)
  parts = {"compute": executed / target.count / chip.flops}
  # Each weight is read in 2 bytes by the forward pass, the backward pass and the recomputation; the optimizer reads and
  # writes the float32 state once.
  shards = run.layout.num_shards("heads")
  parts["memory"] = (3 * 2 * run.parameters / shards + 2 * compiled.arguments) / chip.bandwidth
  if compiled.collectives is not None:
    between = sum(moved["network_bytes"] for moved in compiled.collectives.values())
    within = sum(moved["bytes"] - moved["network_bytes"] for moved in compiled.collectives.values())
    parts["links"] = within / chip.links
    if between:
      parts["network"] = between / chip.network
  bound_by = max(parts, key=parts.get)
  seconds = parts[bound_by]
  return {
    "seconds_per_step": seconds,
    "bound_by": bound_by,
    "seconds_of": parts,
    "executed_flops_per_step": executed,
    "utilisation_bound": {
      # Of full attention, whose masked half no kernel needs to compute.
      "full_attention": min(useful.full / target.count / chip.flops / seconds, 1.0),
      "causal_attention": min(useful.causal / target.count / chip.flops / seconds, 1.0),
    },
  }
