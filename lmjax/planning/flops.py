"""FLOPs by counting the matrix products of a function, whatever the model."""

import dataclasses
import math

import jax
from jax.extend import core

from lmjax.parallel.mesh import MeshShape
from lmjax.parallel.sharding import Layout, use_layout

FORMULA = "3 x the forward pass's matrix products, 2 FLOPs a multiplication, those of causal attention halved"


@dataclasses.dataclass(frozen=True)
class Flops:
  """Of products with weights; of products between activations (attention), every pair of tokens counted."""

  weights: float
  attention: float

  @property
  def full(self) -> float:
    """Attention as if every token saw all: the convention of PaLM's and MaxText's utilisation."""
    return self.weights + self.attention

  @property
  def causal(self) -> float:
    """Attention to earlier tokens only, half of the pairs: what a causal kernel has to do."""
    return self.weights + self.attention / 2

  def executed(self, causal: bool) -> float:
    """What a kernel that skips what it may not see does."""
    return self.causal if causal else self.full

  def __mul__(self, factor: float) -> "Flops":
    return Flops(self.weights * factor, self.attention * factor)


def train_step_flops(task, rows: int, length: int) -> Flops:
  """Returns the FLOPs of a training step, nothing recomputed: the forward's, and twice those for the backward pass."""
  spec = task.spec(1, length)
  forward = count(lambda params, batch: task.loss(params, {}, task.initial_carry(1), batch)[0], _parameters(task), spec)
  return forward * (3 * rows)


def _parameters(task):
  from flax import linen as nn

  spec = task.spec(1, 1)
  return nn.unbox(jax.eval_shape(lambda spec: task.init(jax.random.key(0), spec), spec))


def count(function, *arguments) -> Flops:
  """Returns the FLOPs of a function's matrix products, those in loops as often as they run; nothing is computed."""
  processor = MeshShape().build(jax.devices("cpu")[:1])  # where attention is products, not a kernel
  with use_layout(Layout(processor, ())):
    return _count(jax.make_jaxpr(function)(*arguments).jaxpr)


def _count(jaxpr: core.Jaxpr) -> Flops:
  weights = attention = 0.0
  for equation in jaxpr.eqns:
    if equation.primitive.name == "dot_general":
      (contracted, _), (batch, _) = equation.params["dimension_numbers"]
      shape = equation.invars[0].aval.shape
      flops = 2.0 * math.prod(equation.outvars[0].aval.shape) * math.prod(shape[i] for i in contracted)
      weights, attention = (weights, attention + flops) if batch else (weights + flops, attention)
      continue
    times = equation.params["length"] if equation.primitive.name == "scan" else 1
    for inner in inner_functions(equation.params):
      found = _count(inner) * times
      weights, attention = weights + found.weights, attention + found.attention
  return Flops(weights, attention)


def inner_functions(params: dict):
  """Yields the functions inside an operation; of a branch, the last one."""
  for name, value in params.items():
    values = value if isinstance(value, tuple | list) else (value,)
    for one in values[-1:] if name == "branches" else values:
      if isinstance(one, core.ClosedJaxpr):
        yield one.jaxpr
      elif isinstance(one, core.Jaxpr):
        yield one
