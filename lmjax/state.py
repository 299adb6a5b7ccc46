"""TrainState: everything a step reads and writes, sharded from its initialisation on."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn
from flax import struct

from lmjax.compression.base import ParamTransform
from lmjax.parallel.sharding import Layout, is_partitioned
from lmjax.tasks.base import Base, FrozenModel
from lmjax.utils import pytree
from lmjax.utils.pytree import Tree

Loaded = Mapping[str, jax.Array]  # parameters by path name, on their shardings, that replace new ones


class FrozenState(struct.PyTreeNode):
  """What a step reads and no checkpoint holds."""

  transform: Tree  # of the transform: a LoRA base
  models: dict[str, FrozenModel]  # of the task: teachers, reference models, reward models


class TrainState(struct.PyTreeNode):
  """One training state."""

  step: jax.Array
  params: Tree  # trained: {"model": ..., "heads": {...}}, or what the transform made of it
  opt_state: Tree  # the moving average is the last link of the chain, so it is saved and sharded like the rest
  transform: Tree  # masks, ranges
  carry: Tree  # what the task remembers between steps
  frozen: FrozenState

  def split(self) -> tuple["TrainState", FrozenState]:
    """Returns the state without its frozen part, and that part."""
    return self.replace(frozen=FrozenState({}, {})), self.frozen

  def saved(self) -> dict[str, Any]:
    """Returns what a checkpoint holds."""
    return {field.name: getattr(self, field.name) for field in dataclasses.fields(self) if field.name != "frozen"}


def named_parameters(task: Base, batch: int, length: int) -> Tree:
  """Returns the abstract parameters of the model and its heads with their axis names, nothing computed."""
  # Abstract, since the devices may be absent.
  return jax.eval_shape(lambda spec: task.init(jax.random.key(0), spec), task.spec(batch, length))


def make_init(
  task: Base, tx: optax.GradientTransformation, transform: ParamTransform, layout: Layout, batch: int, length: int,
  seed: int,
) -> tuple[Callable[[Loaded], TrainState], TrainState]:  # fmt: skip
  """Returns init(loaded) -> a new state, compiled, each array created with its sharding, and the abstract state.

  `loaded` parameters take the place of new ones, which are then not computed. The task's frozen models are not in it:
  see `with_models`.
  """
  spec = task.spec(batch, length)

  def build(loaded: Loaded) -> TrainState:
    rng = jax.random.fold_in(jax.random.key(seed), 1)
    zeros = {key: jnp.zeros((1, *leaf.shape[1:]), leaf.dtype) for key, leaf in spec.items()}
    named = _replace(task.init(rng, zeros), loaded)
    params, state, frozen = transform.init(named)
    return TrainState(
      step=jnp.zeros((), jnp.int32),
      params=params,
      opt_state=tx.init(nn.unbox(params)),
      transform=state,
      carry=task.initial_carry(batch),
      frozen=FrozenState(frozen, {}),
    )

  boxed = jax.eval_shape(build, {})
  shapes = nn.unbox(boxed)

  def place(leaf, inherited):  # what a transform names itself is not inherited
    return layout.sharding(*leaf.names, shape=leaf.value.shape) if is_partitioned(leaf) else inherited

  inherited = layout.inherited(shapes, named_parameters(task, batch, length), boxed.params)
  shardings = jax.tree.map(place, boxed, inherited, is_leaf=is_partitioned)
  shardings = shardings.replace(carry=jax.tree.map(lambda s: _by_rows(s.shape, batch, layout), shapes.carry))
  abstract = jax.tree.map(lambda s, where: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=where), shapes, shardings)
  return jax.jit(lambda loaded: nn.unbox(build(loaded)), out_shardings=shardings), abstract


def make_frozen(init: Callable[[Loaded], TrainState], abstract: TrainState) -> Callable[[Loaded], Tree]:
  """Returns frozen(loaded) -> what the transform keeps frozen, made again when a run resumes or is opened.

  Only that is computed: what else `init` makes is not an output.
  """
  shardings = jax.tree.map(lambda leaf: leaf.sharding, abstract.frozen.transform)
  return jax.jit(lambda loaded: init(loaded).frozen.transform, out_shardings=shardings)


def with_models(state: TrainState, models: dict[str, FrozenModel]) -> TrainState:
  """Returns a state with the task's frozen models in it."""
  return state.replace(frozen=state.frozen.replace(models=models))


def _replace(named: Tree, loaded: Loaded) -> Tree:
  """Returns named parameters with the loaded ones in their places; of stacked layers, those at the bottom."""

  def leaf(name: str, box: Any) -> Any:
    new, array = box.value, loaded.get(name, box.value)
    return box.replace(value=array if array.shape == new.shape else new.at[: len(array)].set(array))

  return pytree.map_named(leaf, named, is_leaf=is_partitioned)


def _by_rows(shape: tuple[int, ...], batch: int, layout: Layout) -> jax.sharding.NamedSharding:
  """Returns where a carried array goes: its rows with those of the batch, if it has any."""
  return layout.sharding("batch", shape=shape[:1]) if shape[:1] == (batch,) else layout.sharding()
