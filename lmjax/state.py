"""TrainState: everything a step reads and writes, sharded from make_init."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn
from flax import struct

from lmjax.compression.base import ParamTransform
from lmjax.parallel.sharding import Layout
from lmjax.tasks.base import Task
from lmjax.utils import pytree
from lmjax.utils.pytree import Tree


@struct.dataclass
class TrainState:
  """One training state."""

  step: jax.Array
  params: Tree  # trained: {"model": ..., "heads": {...}}, or what the transform made of it
  opt_state: Tree  # the moving average is the last link of the chain, so it is saved and sharded like the rest
  transform: Tree  # masks, ranges
  carry: Tree  # what the task remembers between steps
  frozen: Tree  # teachers, references, LoRA bases: never in a checkpoint

  def saved(self) -> dict[str, Any]:
    """Returns what a checkpoint holds."""
    return {
      "step": self.step,
      "params": self.params,
      "opt_state": self.opt_state,
      "transform": self.transform,
      "carry": self.carry,
    }


def named_parameters(task: Task, batch: int, length: int) -> Tree:
  """Returns the abstract parameters with their axis names, nothing computed."""
  spec = task.spec(batch, length)
  return jax.eval_shape(lambda spec: task.init(jax.random.key(0), spec), spec)  # the devices may be absent


def make_init(
  task: Task,
  tx: optax.GradientTransformation,
  transform: ParamTransform,
  layout: Layout,
  batch: int,
  length: int,
  seed: int,
) -> tuple[Callable[[], TrainState], TrainState]:
  """Returns init() -> a new state, each array created with its sharding, and the abstract state."""
  spec = task.spec(batch, length)

  def fresh():
    rng = jax.random.fold_in(jax.random.key(seed), 1)
    zeros = {key: jnp.zeros((1, *leaf.shape[1:]), leaf.dtype) for key, leaf in spec.items()}
    params, transform_state = transform.init(nn.unbox(task.init(rng, zeros)))
    return TrainState(
      step=jnp.zeros((), jnp.int32),
      params=params,
      opt_state=tx.init(params),
      transform=transform_state,
      carry=task.initial_carry(batch),
      frozen={},
    )

  shapes = jax.eval_shape(fresh)
  named = named_parameters(task, batch, length)
  shardings = pytree.inherit(shapes, nn.unbox(named), layout.shardings(named), layout.sharding())
  shardings = shardings.replace(carry=jax.tree.map(lambda s: _by_rows(s.shape, batch, layout), shapes.carry))
  abstract = jax.tree.map(lambda s, where: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=where), shapes, shardings)
  return jax.jit(fresh, out_shardings=shardings), abstract


def _by_rows(shape: tuple[int, ...], batch: int, layout: Layout) -> jax.sharding.NamedSharding:
  """Returns where a carried array goes: its rows with those of the batch, if it has any."""
  return layout.sharding("batch", shape=shape[:1]) if shape[:1] == (batch,) else layout.sharding()


def init_state(*arguments, abstract: bool = False) -> TrainState:
  """Returns a fresh state (see `make_init`), or its shapes and shardings."""
  fresh, shapes = make_init(*arguments)
  return shapes if abstract else fresh()
