"""FLOPs and memory of a step from its jaxpr, for devices without a compiler."""

import math
from typing import Any

import jax
from jax.extend import core

from lmjax.experiment import Experiment
from lmjax.planning.aot import Compiled
from lmjax.planning.flops import Flops, count, inner_functions
from lmjax.tasks.base import Spec


def executed_flops(run: Experiment) -> Flops:
  """Returns the FLOPs of the loss and gradient of a batch, with those that the backward pass recomputes."""
  gradient, arguments = _gradient(run)
  return count(gradient, *arguments) * (run.rows / _rows(arguments[-1]))


def estimate(run: Experiment, capacity: float) -> Compiled:
  """Returns the memory of a step in bytes per device: exact for state and batch, estimated for temporaries.

    temporaries = residuals of a row x rows of a microbatch per device + gradients + parameters in the compute dtype

  Residuals are the arrays that the loops over layers keep for the backward pass.

  Args:
    capacity: bytes of memory of a device; infinite for a CPU.
  """
  state = run.state(abstract=True)
  arguments = sum(stored_bytes(leaf) for leaf in jax.tree.leaves((state.saved(), state.frozen)))
  spec = run.task.spec(run.batch, run.data.length)
  shardings = run.layout.batch(spec)
  for key, leaf in spec.items():
    arguments += math.prod(shardings[key].shard_shape(leaf.shape)) * leaf.dtype.itemsize
  gradient, abstract = _gradient(run)
  # Attention kernels of accelerators do not keep the scores of all pairs of tokens; attention on a CPU does.
  scores = run.data.length if math.isfinite(capacity) else 0
  residuals = _residuals(jax.make_jaxpr(gradient)(*abstract).jaxpr, scores)
  rows = run.rows / _rows(abstract[-1]) / run.layout.num_shards("batch") / run.optimizer.microbatches
  shards = run.layout.num_shards("residual_length")
  parameters = sum(stored_bytes(leaf) for leaf in jax.tree.leaves(state.params))
  width = 0.5 if getattr(run.task.model.config, "dtype", "float32") == "bfloat16" else 0.0
  temporaries = int(residuals * rows / shards + parameters * (1 + width))
  total = arguments + temporaries
  return Compiled(arguments, temporaries, 0, total <= capacity, 0.0, None)


def _gradient(run: Experiment):
  """Returns the gradient function of the loss of one row of the batch, and its abstract arguments, the batch last.

  A task that collects may make several rows of one.
  """
  task, spec = run.task, run.task.spec(1, run.data.length)
  state = run.state(abstract=True)
  parts = (state.params, state.transform, state.frozen)
  parts = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), parts)

  def loss(params, transform, frozen, batch):
    params = run.transform.forward(params, transform, frozen.transform)
    terms, _ = task.loss(params, frozen.models, task.initial_carry(1), batch)
    return sum(terms[key].total for key in task.counts(batch))

  return jax.grad(loss), (*parts, spec)


def _rows(spec: Spec) -> int:
  return next(iter(spec.values())).shape[0]


def stored_bytes(leaf: jax.ShapeDtypeStruct) -> int:
  """Returns the bytes of an abstract array on one device."""
  return math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize


def _residuals(jaxpr: core.Jaxpr, scores: int) -> int:
  """Returns the bytes that loops keep for the backward pass, without arrays that end in [scores, scores]."""
  total = 0
  for equation in jaxpr.eqns:
    if equation.primitive.name == "scan":
      outputs: list[Any] = [v.aval for v in equation.outvars]
      body: list[Any] = [v.aval for v in equation.params["jaxpr"].jaxpr.outvars]
      # An output that is stacked over the iterations has one axis more than in the body.
      stacked = [outer for outer, inner in zip(outputs, body, strict=True) if outer.ndim > inner.ndim]
      total += sum(math.prod(a.shape) * a.dtype.itemsize for a in stacked if a.shape[-2:] != (scores, scores))
    else:
      total += sum(_residuals(inner, scores) for inner in inner_functions(equation.params))
  return total
