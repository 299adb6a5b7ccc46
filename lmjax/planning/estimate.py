"""A step by counting alone: for devices whose compiler is not at hand, and for what a compiler does not say."""

import math

import jax
from jax.extend import core

from lmjax.planning.aot import Compiled
from lmjax.planning.flops import Flops, count, inner_functions


def executed_flops(run) -> Flops:
  """Returns the FLOPs of the loss and its gradient as they run, what is recomputed for the backward pass included."""
  gradient, arguments = _gradient(run)
  return count(gradient, *arguments) * run.batch


def estimate(run, capacity: float) -> Compiled:
  """Returns the memory of a step on any devices: state and batch exactly, temporaries as what the step must keep.

  Those are what the loops over layers keep for the backward pass, a row's share times the rows of a device; the
  gradients; a copy of the parameters in the compute type.
  """
  state = run.state(abstract=True)
  arguments = sum(_stored(leaf) for leaf in jax.tree.leaves(state.saved()))
  spec = run.task.spec(run.batch, run.data.length)
  shardings = run.layout.batch(spec)
  for key, leaf in spec.items():
    arguments += math.prod(shardings[key].shard_shape(leaf.shape)) * leaf.dtype.itemsize
  gradient, abstract = _gradient(run)
  # Kernels of accelerators keep no scores of every pair of tokens; XLA's own attention, on a CPU, does.
  scores = run.data.length if math.isfinite(capacity) else 0
  kept = _kept(jax.make_jaxpr(gradient)(*abstract).jaxpr, scores)
  rows = run.batch / run.layout.num_shards("batch") / run.optimizer.microbatches
  shared = run.layout.num_shards("residual_length")
  parameters = sum(_stored(leaf) for leaf in jax.tree.leaves(state.params))
  width = 0.5 if getattr(run.task.model.config, "dtype", "float32") == "bfloat16" else 0.0
  temporaries = int(kept * rows / shared + parameters * (1 + width))
  total = arguments + temporaries
  return Compiled(arguments, temporaries, 0, total <= capacity, 0.0, None)


def _gradient(run):
  """Returns the gradient of the loss of one row, and its abstract arguments."""
  task, spec = run.task, run.task.spec(1, run.data.length)
  params = run.state(abstract=True).params
  params = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), params)

  def loss(params, batch):
    terms, _ = task.loss(params, {}, task.initial_carry(1), batch)
    return sum(terms[key].total for key in task.counts(batch))

  return jax.grad(loss), (params, spec)


def _stored(leaf) -> int:
  """Returns the bytes of an abstract array on one device."""
  return math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize


def _kept(jaxpr: core.Jaxpr, scores: int) -> int:
  """Returns the bytes of what loops stack up, the residuals of the layers, but for arrays of scores x scores."""
  total = 0
  for equation in jaxpr.eqns:
    if equation.primitive.name == "scan":
      carried = equation.params["num_carry"]
      stacked = equation.outvars[carried:]
      shapes = [v.aval for v in stacked if v.aval.shape[-2:] != (scores, scores)]
      total += sum(math.prod(aval.shape) * aval.dtype.itemsize for aval in shapes)
    else:
      total += sum(_kept(inner, scores) for inner in inner_functions(equation.params))
  return total
