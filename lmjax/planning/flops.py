"""FLOPs of a model of any kind, by counting the matrix products in its jaxpr."""

import dataclasses
import math
from collections.abc import Callable, Iterator
from typing import Any

import jax
from flax import linen as nn
from jax.extend import core

from lmjax.parallel.mesh import MeshShape
from lmjax.parallel.sharding import Layout, use_layout
from lmjax.state import named_parameters
from lmjax.tasks.base import FrozenModel, Task

FORMULA = "3 x the matrix products of the forward pass, 2 FLOPs per multiply-add, causal attention halved"


@dataclasses.dataclass(frozen=True)
class Flops:
  """FLOPs of products with weights, and of products between activations (attention) over all pairs of tokens."""

  weights: float
  attention: float

  @property
  def full(self) -> float:
    """With attention between all pairs of tokens, as in the utilisation of PaLM (arXiv:2204.02311) and MaxText."""
    return self.weights + self.attention

  @property
  def causal(self) -> float:
    """With attention to earlier tokens only, which is half of the pairs, as a causal kernel computes it."""
    return self.weights + self.attention / 2

  def executed(self, causal: bool) -> float:
    """The FLOPs that a kernel executes which skips masked blocks; causal: whether the model is."""
    return self.causal if causal else self.full

  def __mul__(self, factor: float) -> "Flops":
    return Flops(self.weights * factor, self.attention * factor)


def train_step_flops(task: Task, rows: int, length: int, models: dict[str, FrozenModel] | None = None) -> Flops:
  """Returns the FLOPs of a training step on [rows, length] tokens, recomputation not counted.

    FLOPs = 3 x forward: the forward pass, and twice as much for the backward pass

  models: the frozen models that the task uses, by name.
  """

  def loss(params, frozen, batch):
    return task.loss(params, frozen, task.initial_carry(rows), batch)[0]

  frozen = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), models or {})
  return count(loss, nn.unbox(named_parameters(task, 1, 1)), frozen, task.spec(rows, length)) * 3


def count(function: Callable[..., Any], *arguments: Any) -> Flops:
  """Returns the FLOPs of a function's matrix products, those in loops for every iteration; nothing is computed.

  Products without batch dimensions, or of size 1, are counted as products with weights, the others as attention.
  """
  cpu = MeshShape().build(jax.devices("cpu")[:1])  # where attention is matrix products, not a kernel
  with use_layout(Layout(cpu, ())):
    return _count(jax.make_jaxpr(function)(*arguments).jaxpr)


def _count(jaxpr: core.Jaxpr) -> Flops:
  weights = attention = 0.0
  for equation in jaxpr.eqns:
    left: Any = equation.invars[0].aval if equation.invars else None  # an array's; AbstractValue declares no shape
    product: Any = equation.outvars[0].aval if equation.outvars else None
    if equation.primitive.name == "ragged_dot_general":  # of experts, and its gradients: each row by one of them
      weights += 2.0 * math.prod(left.shape) * product.shape[-1]
    if equation.primitive.name == "dot_general":
      (contracted, _), (batch, _) = equation.params["dimension_numbers"]
      flops = 2.0 * math.prod(product.shape) * math.prod(left.shape[i] for i in contracted)
      apart = math.prod(left.shape[i] for i in batch) > 1
      weights, attention = (weights, attention + flops) if apart else (weights + flops, attention)
    times = equation.params["length"] if equation.primitive.name == "scan" else 1
    for inner in inner_functions(equation.params):
      flops = _count(inner) * times
      weights, attention = weights + flops.weights, attention + flops.attention
  return Flops(weights, attention)


def inner_functions(params: dict[str, Any]) -> Iterator[core.Jaxpr]:
  """Yields the jaxprs inside an operation's parameters; of a conditional, the last branch only."""
  for name, value in params.items():
    values = value if isinstance(value, tuple | list) else (value,)
    for one in values[-1:] if name == "branches" else values:
      if isinstance(one, core.ClosedJaxpr):
        yield one.jaxpr
      elif isinstance(one, core.Jaxpr):
        yield one
