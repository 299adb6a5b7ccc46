"""The parts of a run that learns from its own answers besides learning: writing them and scoring them.

Each is compiled with all that is on the devices at that time, the optimizer's state and the frozen models included.
"""

import math
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from lmjax.decode.logits import Sampling
from lmjax.decode.sample import Sampler
from lmjax.experiment import Experiment
from lmjax.parallel.sharding import count_parameters
from lmjax.planning.aot import Compiled, Topology, compile_step
from lmjax.planning.flops import count
from lmjax.state import FrozenState, TrainState
from lmjax.tasks.base import Spec
from lmjax.tasks.reward import RewardModel
from lmjax.tasks.rl.policy import Policy

Part = tuple[Callable[..., Any], Spec]  # function(state, frozen, batch), and the shapes of its batch


def parts_of(run: Experiment, target: Topology, capacity: float) -> dict[str, tuple[Compiled, dict[str, float]]]:
  """Returns {part: (its memory and collectives, its least seconds by what bounds it)}; none of other tasks.

  Args:
    target: devices that there is a compiler for.
    capacity: bytes of memory of a device.
  """
  if not isinstance(run.task, Policy):
    return {}
  state, frozen = run.state(abstract=True).split()
  parts = {}
  for name, (function, spec) in {"rollout": _rollout(run, run.task), "scoring": _scoring(run, run.task)}.items():
    start, batch = time.perf_counter(), run.layout.abstract_batch(spec)
    # What is resident counts, whether this part reads it or not.
    lowered = jax.jit(function, keep_unused=True).lower(state, frozen, batch)
    compiled = compile_step(lowered, capacity, target.slices, start)
    parts[name] = compiled, _seconds(run, target, compiled, name, function, (state, frozen, spec))
  return parts


def _rollout(run: Experiment, task: Policy) -> Part:
  """Returns the writing of answers to a batch of prompts, as `write_answers` does it."""
  rows, new = run.batch * task.samples, task.answer_tokens
  width = run.data.length - new
  pairs = task.model.kind == "encoder_decoder"
  assert task.text is not None
  sampler = Sampler(task.model, width + new, Sampling(temperature=task.temperature), task.text.ends)

  def write(state: TrainState, frozen: FrozenState, batch: dict[str, jax.Array]) -> jax.Array:
    params = run.model_params(state.replace(frozen=frozen))
    read, source = (batch["tokens"], batch["valid"]), None
    if pairs:
      read, source = (read[0][:, :1], jnp.ones((rows, 1), bool)), read
    prepared = task.model.decode_layout(task.compute(params))
    tokens = read[0].shape[1] + new
    decoding = sampler._prefill(prepared, *read, batch["seeds"], tokens, source)
    drawn: jax.Array = sampler._extend(prepared, decoding, max(new - 1, 1))[1]
    return drawn

  kinds = {"tokens": ((rows, width), jnp.int32), "valid": ((rows, width), jnp.bool_), "seeds": ((rows,), jnp.uint32)}
  return write, {key: jax.ShapeDtypeStruct(shape, kind) for key, (shape, kind) in kinds.items()}


def _scoring(run: Experiment, task: Policy) -> Part:
  """Returns the scoring of the answers of a minibatch: by policy, reference, value function and reward models."""
  spec = {key: leaf for key, leaf in task.spec(run.batch, run.data.length).items() if "pretraining_" not in key}
  read = [key for key in spec if key.endswith(("inputs", "positions", "segments", "targets", "weights"))]

  def score(state: TrainState, frozen: FrozenState, batch: dict[str, jax.Array]) -> list[Any]:
    params = run.model_params(state.replace(frozen=frozen))
    judges = [model for model in frozen.models.values() if isinstance(model.task, RewardModel)]
    return [task.measure(params, frozen.models, batch), *(m.task.forward(m.params, batch).logits for m in judges)]

  return score, {key: spec[key] for key in read}


def _seconds(
  run: Experiment, target: Topology, compiled: Compiled, name: str, function: Callable[..., Any], arguments: Any
) -> dict[str, float]:
  """Returns the least seconds of a part by what bounds it, as `report._least_time` does for learning."""
  chip = target.chip
  assert chip is not None
  plain = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), arguments)
  seconds = {"compute": count(function, *plain).executed(run.task.model.causal) / target.count / chip.flops}
  passes = run.task.answer_tokens if name == "rollout" else 1  # type: ignore[attr-defined]  # a Policy's
  weights = (
    2 * count_parameters(run.named["model"] if name == "rollout" else run.named) / run.layout.num_shards("heads")
  )
  seconds["memory"] = passes * weights / chip.bandwidth
  for moved in (compiled.collectives or {}).values():
    seconds["links"] = seconds.get("links", 0.0) + (moved["bytes"] - moved["network_bytes"]) / chip.links
    seconds["network"] = seconds.get("network", 0.0) + moved["network_bytes"] / chip.network
  return {bound: value for bound, value in seconds.items() if value and math.isfinite(value)}
