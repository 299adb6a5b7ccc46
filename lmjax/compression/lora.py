"""LoRA: kernels are frozen, and a product of two small matrices that is added to each is trained."""

import dataclasses
import math
import re
import zlib
from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import struct, traverse_util

from lmjax.layers import leaves
from lmjax.layers.leaves import Leaf
from lmjax.parallel.sharding import LogicallyPartitioned, is_partitioned
from lmjax.utils import pytree
from lmjax.utils.errors import UserError, one_line
from lmjax.utils.pytree import Tree

RANK = "r"  # its letter in equations, which are written in capitals


class LowRank(Leaf, struct.PyTreeNode):
  """A kernel base + scale * a b, whose product with x is x base + scale * (x a) b.

  base: [*inputs, *outputs]. a: [*inputs, R]. b: [R, *outputs]. In stacked layers all three have a leading axis, and so
  have those of experts. Rows of a table are its inputs.
  """

  base: jax.Array
  a: jax.Array
  b: jax.Array
  scale: float = struct.field(pytree_node=False, default=1.0)
  dropout: float = struct.field(pytree_node=False, default=0.0)  # of what a reads, in training
  rng: jax.Array | None = None  # of the dropout; a model that is not in training has none

  @classmethod
  def axes(cls, component: str, names: tuple[str | None, ...]) -> tuple[str | None, ...]:
    """Returns the logical axes of a component; the axis of the rank is never sharded."""
    split = first_output(names)
    stacked = names[: stacked_axes(names)]
    return {"base": names, "a": (*names[:split], None), "b": (*stacked, None, *names[split:])}[component]

  def dense(self, dtype: jnp.dtype) -> jax.Array:
    product = lambda a, b: jnp.tensordot(a, b, 1, preferred_element_type=jnp.float32)  # noqa: E731
    for _ in range(self.a.ndim + self.b.ndim - 2 - self.base.ndim):  # layers, experts
      product = jax.vmap(product)
    return (self.base.astype(jnp.float32) + self.scale * product(self.a, self.b)).astype(dtype)

  def cast(self, dtype: jnp.dtype) -> "LowRank":
    return self.replace(base=self.base.astype(dtype), a=self.a.astype(dtype), b=self.b.astype(dtype))

  def in_training(self, make_rng: Callable[[], jax.Array]) -> "LowRank":
    return self.replace(rng=make_rng()) if self.dropout else self

  def einsum(self, equation: str, x: jax.Array) -> jax.Array:
    inputs, outputs = equation.split("->")
    inputs, letters = inputs.split(",")
    split = self.a.ndim - 1
    if set(letters[:split]) & set(outputs) or not set(letters[split:]) <= set(outputs):
      return super().einsum(equation, x)  # not a product over the inputs of the factors
    kept = "".join(letter for letter in inputs if letter not in letters) + RANK
    read = x
    if self.rng is not None:
      mask = jax.random.bernoulli(self.rng, 1 - self.dropout, x.shape)
      read = jnp.where(mask, x / (1 - self.dropout), 0).astype(x.dtype)
    low = leaves.einsum(f"{inputs},{letters[:split]}{RANK}->{kept}", read, self.a)
    change = leaves.einsum(f"{kept},{RANK}{letters[split:]}->{outputs}", low, self.b)
    return leaves.einsum(equation, x, self.base) + self.scale * change

  def take(self, ids: jax.Array, dtype: jnp.dtype) -> jax.Array:
    low = leaves.take(self.a, ids, dtype)
    change = jnp.einsum("...r,rd->...d", low, self.b.astype(dtype))
    return leaves.take(self.base, ids, dtype) + self.scale * change

  def scores(self, x: jax.Array) -> jax.Array:
    low = jnp.einsum("...d,rd->...r", x, self.b.astype(x.dtype))
    return leaves.scores(x, self.base) + self.scale * leaves.scores(low, self.a)


def stacked_axes(names: tuple[str | None, ...]) -> int:
  """Returns how many leading axes of a parameter count kernels of their own: layers, and the experts of each."""
  return next((i for i, name in enumerate(names) if name not in ("layers", "experts")), len(names))


def first_output(names: tuple[str | None, ...]) -> int:
  """Returns the index of a kernel's first output axis, by the logical names of its axes.

  Its inputs are one axis, or two: heads and the size of a head, the characters of a filter and their vectors.
  """
  stacked = stacked_axes(names)
  return stacked + (2 if len(names) - stacked > 2 and names[stacked] in ("heads", None) else 1)


@dataclasses.dataclass(frozen=True)
class LoRA:
  """Low-rank adaptation (Hu et al., 2021, arXiv:2106.09685).

    W' = W + alpha / rank * A B,  or alpha / sqrt(rank) where rank_stabilized (Kalajdzievski, 2023, arXiv:2312.03732)

  W is frozen: on the mesh, in no checkpoint, made again from `config.start` or the seed. A is drawn uniformly from
  +-1/sqrt(inputs) and B is zero; of a table, whose rows are inputs, A is zero and B drawn. Patterns are regular
  expressions that are searched in the path names of parameters; of several, the first that matches applies.

  targets: the kernels and tables that get factors, by default those of the paper: W_q and W_v.
  rank, alpha: of the factors; rank_pattern, alpha_pattern: {pattern: value} for some of the targets.
  dropout: of the vectors that A reads, in training; a table's factors have none, as in PEFT, nor have those of experts.
  train: the other parameters that are trained; all others are frozen.
  dtype: of what is frozen, float32 or bfloat16; norms stay float32.
  seed: of the factors; a config's own seed where the config names the transform.

  Raises:
    UserError: no kernel matches `targets`, or nothing matches `train` although it is not the default.
  """

  targets: str = "attention/(query|value)/kernel"
  rank: int = 8
  alpha: float = 16.0
  rank_pattern: dict[str, int] = dataclasses.field(default_factory=dict)
  alpha_pattern: dict[str, float] = dataclasses.field(default_factory=dict)
  rank_stabilized: bool = False
  dropout: float = 0.0
  train: str = "^heads/"
  dtype: str = "float32"
  seed: int = 0

  def __post_init__(self):
    if min([self.rank, *self.rank_pattern.values()]) < 1:
      raise ValueError("a rank must be at least 1")
    if not 0 <= self.dropout < 1:
      raise ValueError(f"dropout is at least 0 and below 1, not {self.dropout}")
    if self.dtype not in ("float32", "bfloat16"):
      raise ValueError(f"dtype is float32 or bfloat16, not {self.dtype!r}")
    for pattern in (self.targets, self.train, *self.rank_pattern, *self.alpha_pattern):
      try:
        re.compile(pattern)
      except re.error as error:
        raise ValueError(f"{pattern!r} is not a regular expression: {error}") from error

  def rank_of(self, name: str) -> int:
    """Returns the rank of the factors of a parameter."""
    return int(pytree.first_match(self.rank_pattern, name, self.rank))

  def scale_of(self, name: str) -> float:
    """Returns what the product of the factors of a parameter is multiplied by."""
    alpha, rank = float(pytree.first_match(self.alpha_pattern, name, self.alpha)), self.rank_of(name)
    return alpha / (math.sqrt(rank) if self.rank_stabilized else rank)

  def init(self, params: Tree) -> tuple[Tree, Tree, Tree]:
    named = pytree.named_leaves(params, is_leaf=is_partitioned)
    kernels = [name for name in named if name.endswith(("kernel", "table"))]
    targets = {name for name in kernels if re.search(self.targets, name)}
    if not targets:
      raise UserError(
        f"transform.targets={self.targets!r} matches no kernel; those of this model: {one_line(', '.join(kernels))}"
      )
    trained, frozen = {}, {}
    for name, parameter in named.items():
      if name in targets:
        trained |= {f"{name}/{part}": factor for part, factor in self._factors(name, parameter).items()}
      (trained if name not in targets and re.search(self.train, name) else frozen)[name] = parameter
    if self.train != LoRA.train and not any(name in named for name in trained):
      raise UserError(f"transform.train={self.train!r} matches no parameter that is not a target")
    return _nest(trained), {}, leaves.cast(_nest(frozen), jnp.dtype(self.dtype))

  def _factors(self, name: str, parameter: LogicallyPartitioned) -> dict[str, LogicallyPartitioned]:
    """Returns new factors of a kernel or table, with their axis names."""
    names, shape = parameter.names, parameter.value.shape
    stacked, split, rank = stacked_axes(names), first_output(names), self.rank_of(name)
    shapes = {"a": (*shape[:split], rank), "b": (*shape[:stacked], rank, *shape[split:])}
    inputs = math.prod(shape[stacked:split])
    rng = jax.random.fold_in(jax.random.key(self.seed), zlib.crc32(name.encode()))
    drawn, bound = ("b", rank**-0.5) if name.endswith("table") else ("a", inputs**-0.5)
    random = jax.random.uniform(rng, shapes[drawn], jnp.float32, -bound, bound)
    values = {part: random if part == drawn else jnp.zeros(shape) for part, shape in shapes.items()}
    return {part: LogicallyPartitioned(value, LowRank.axes(part, names)) for part, value in values.items()}

  def forward(self, params: Tree, state: Tree, frozen: Tree) -> Tree:
    trained, model = pytree.named_leaves(params), pytree.named_leaves(frozen)
    for name, base in model.items():
      if f"{name}/a" in trained:
        a, b = (trained.pop(f"{name}/{part}") for part in "ab")
        model[name] = LowRank(base, a, b, self.scale_of(name), self.dropout)
    return _nest(model | trained)

  def update(self, params: Tree, grads: Tree, state: Tree, step: jax.Array) -> tuple[Tree, Tree]:
    return params, state

  def merge(self, params: Tree, state: Tree, frozen: Tree) -> Tree:
    model = self.forward(params, state, frozen)
    return jax.tree.map(lambda leaf: leaves.dense(leaf, jnp.float32), model, is_leaf=leaves.is_leaf)

  def metrics(self, params: Tree, state: Tree) -> dict[str, jax.Array]:
    return {}


def _nest(flat: dict[str, jax.Array]) -> Tree:
  """Returns the tree of path names, with both parts that every model has."""
  return {"model": {}, "heads": {}} | traverse_util.unflatten_dict(flat, sep="/")
