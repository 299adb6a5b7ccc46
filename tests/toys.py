"""A toy leaf type, and toy transforms and tasks, for tests of the interfaces that such things implement."""

import dataclasses
from collections.abc import Iterable

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax import struct

from lmjax.layers import leaves
from lmjax.layers.leaves import Leaf
from lmjax.parallel.sharding import is_partitioned
from lmjax.tasks.base import Collected
from lmjax.tasks.causal_lm import CausalLM
from lmjax.utils import pytree


@struct.dataclass
class Scaled(Leaf):
  """A kernel or table as (values + rest) * scale: two bfloat16 arrays of its shape, and one scale for each channel."""

  values: jax.Array
  rest: jax.Array  # what the rounding of `values` lost
  scale: jax.Array  # float32, of size 1 along one axis

  @classmethod
  def of(cls, array: jax.Array, axis: int) -> "Scaled":
    scale = jnp.max(jnp.abs(array), axis, keepdims=True) + 1e-6
    values = (array / scale).astype(jnp.bfloat16)
    return cls(values, (array / scale - values).astype(jnp.bfloat16), scale)

  def dense(self, dtype: jnp.dtype) -> jax.Array:
    return ((self.values.astype(jnp.float32) + self.rest.astype(jnp.float32)) * self.scale).astype(dtype)

  def cast(self, dtype: jnp.dtype) -> "Scaled":
    return self.replace(values=self.values.astype(dtype), rest=self.rest.astype(dtype))


@dataclasses.dataclass(frozen=True)
class Scale:
  """Every kernel and table is trained as a `Scaled` leaf; its arrays have axis names, or inherit them."""

  named: bool = True

  def init(self, params):
    def leaf(name, parameter):
      if not name.endswith(("kernel", "table")):
        return parameter
      axis = -1 if name.endswith("table") else int(parameter.names[0] == "layers")
      scaled = Scaled.of(parameter.value, axis)
      return leaves.partition(scaled, parameter) if self.named else scaled

    return pytree.map_named(leaf, params, is_leaf=is_partitioned), {}, {}

  def forward(self, params, state, frozen):
    return params

  def update(self, params, grads, state, step):
    return params, state

  def merge(self, params, state, frozen):
    return leaves.dense_tree(params)

  def metrics(self, params, state):
    return {}


@dataclasses.dataclass(frozen=True)
class Multiple:
  """The model sees `factor` times what is trained, which is logged as `largest`."""

  factor: float = 2.0

  def init(self, params):
    return jax.tree.map(lambda x: x / self.factor, params), {"updates": jnp.zeros((), jnp.int32)}, {}

  def forward(self, params, state, frozen):
    return jax.tree.map(lambda x: x * self.factor, params)

  def update(self, params, grads, state, step):
    return params, {"updates": state["updates"] + 1}

  def merge(self, params, state, frozen):
    return self.forward(params, state, frozen)

  def metrics(self, params, state):
    return {"largest": jnp.max(jnp.stack([jnp.max(jnp.abs(x)) for x in jax.tree.leaves(params)]))}


@dataclasses.dataclass(frozen=True)
class Difference:
  """What is trained is the difference from new parameters, which are frozen: LoRA of full rank."""

  def init(self, params):
    return jax.tree.map(jnp.zeros_like, params), {}, params

  def forward(self, params, state, frozen):
    return jax.tree.map(jnp.add, params, frozen)

  def update(self, params, grads, state, step):
    return params, state

  def merge(self, params, state, frozen):
    return self.forward(params, state, frozen)

  def metrics(self, params, state):
    return {"norm": jnp.sqrt(sum(jnp.sum(x**2) for x in jax.tree.leaves(nn.unbox(params))))}


@dataclasses.dataclass(frozen=True)
class Noisy(CausalLM):
  """Makes two batches of each that comes, in which random tokens replace some of the inputs."""

  collects = True

  def collect(self, params, frozen, carry, batch, rng) -> Iterable[Collected]:
    table = leaves.dense(self.model.unembedding(params["model"]).values)
    for part in jax.random.split(rng):
      first, second, third = jax.random.split(part, 3)
      tokens = jax.random.randint(first, batch["inputs"].shape, 0, self.model.config.vocabulary)
      inputs = jnp.where(jax.random.bernoulli(second, 0.2, tokens.shape), tokens, batch["inputs"])
      metrics = {"draw": float(jax.random.uniform(third)), "table_norm": float(jnp.linalg.norm(table))}
      yield Collected(batch | {"inputs": inputs}, metrics)
