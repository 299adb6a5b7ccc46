"""Pruning in training: masks that stay, grow by a schedule and survive a resume."""

import dataclasses
import re

import jax
import jax.numpy as jnp
from flax import traverse_util

from lmjax.compression import masks
from lmjax.compression.method import check_pattern
from lmjax.parallel.sharding import LogicallyPartitioned, is_partitioned
from lmjax.utils import pytree
from lmjax.utils.errors import UserError, one_line
from lmjax.utils.pytree import Tree

# What a weight w adds to its score in each step, by its gradient g.
BY_GRADIENT = {"movement": lambda w, g: -w * g, "taylor": lambda w, g: jnp.abs(w * g)}


class Masked:
  """What transforms with masks share: kernels are multiplied by masks, which are saved."""

  targets: str  # a regular expression that is searched in the paths of kernels

  def kernels(self, params: Tree) -> dict[str, LogicallyPartitioned]:
    """Returns the kernels that have masks, of named parameters, by path names.

    Raises:
      UserError: there are none.
    """
    named = pytree.named_leaves(params, is_leaf=is_partitioned)
    kernels = [name for name in named if name.endswith("kernel")]
    targets = {name: named[name] for name in kernels if re.search(self.targets, name)}
    if not targets:
      raise UserError(
        f"transform.targets={self.targets!r} matches no kernel; those of this model: {one_line(', '.join(kernels))}"
      )
    return targets

  def forward(self, params: Tree, state: Tree, frozen: Tree) -> Tree:
    kept = pytree.named_leaves(state["masks"])
    return pytree.map_named(lambda name, leaf: leaf * kept[name] if name in kept else leaf, params)

  def update(self, params: Tree, grads: Tree, state: Tree, step: jax.Array) -> tuple[Tree, Tree]:
    return self.forward(params, state, {}), state  # zero in checkpoints, whatever the optimizer has added

  def merge(self, params: Tree, state: Tree, frozen: Tree) -> Tree:
    return self.forward(params, state, frozen)

  def metrics(self, params: Tree, state: Tree) -> dict[str, jax.Array]:
    kept = jax.tree.leaves(state["masks"])
    return {"sparsity": 1 - sum(jnp.sum(mask) for mask in kept) / sum(mask.size for mask in kept)}


@dataclasses.dataclass(frozen=True)
class Prune(Masked):
  """Kernels lose their lowest values, which stay zero.

    sparsity(step) = sparsity * (1 - (1 - t)^3),  t = (step - begin) / (end - begin) from 0 to 1

  as in Zhu and Gupta (2017, arXiv:1710.01878). With end 0 the masks are made of the weights that the run starts from,
  and do not change. g is the gradient of each step so far:

    magnitude |w|;  movement -sum of w g (Sanh et al., 2020, arXiv:2005.07683);  taylor sum of |w g|

  sparsity: the fraction of values that are zero in the end. structure: `layer`, `output`, `global` or N:M, see
  `masks.removed`. score: `magnitude`, `random` as a control, or with an end `movement` and `taylor`. targets: a regular
  expression that is searched in the paths of kernels. begin, end, every: steps. seed: of random scores; a config's own
  seed where the config names the transform.

  Raises:
    UserError: no kernel matches `targets`.
  """

  sparsity: float
  structure: str = "layer"
  score: str = "magnitude"
  targets: str = "^model/.*kernel$"
  begin: int = 0
  end: int = 0
  every: int = 100
  seed: int = 0

  def __post_init__(self):
    masks.check(self.sparsity, self.structure)
    if self.score not in ("magnitude", "random", *BY_GRADIENT):
      raise ValueError(f"the score is magnitude, random, movement or taylor, not {self.score!r}")
    if self.score in BY_GRADIENT and not self.end:
      raise ValueError(f"the score {self.score} is of gradients during training, and needs an end")
    if self.every < 1 or self.begin < 0 or (self.end and self.end <= self.begin):
      raise ValueError("end comes after begin, and every is at least 1")
    if self.end and self.structure not in ("layer", "global"):
      raise ValueError(f"a schedule, with an end, needs the structure layer or global, not {self.structure}")
    check_pattern(self.targets)

  def init(self, params: Tree) -> tuple[Tree, Tree, Tree]:
    targets = self.kernels(params)
    values = {name: box.value for name, box in targets.items()}
    kept = {name: jnp.ones(value.shape, bool) for name, value in values.items()}
    if not self.end:
      axes = {name: box.names for name, box in targets.items()}
      kept = self._kept(self._scores(values), kept, axes, self.sparsity)
    state = {"masks": traverse_util.unflatten_dict(kept, sep="/")}
    if self.score in BY_GRADIENT:
      state["scores"] = traverse_util.unflatten_dict({n: jnp.zeros_like(x) for n, x in values.items()}, sep="/")
    return params, state, {}

  def _scores(self, values: dict[str, jax.Array]) -> dict[str, jax.Array]:
    if self.score == "magnitude":
      return {name: jnp.abs(value) for name, value in values.items()}
    return {name: masks.random_scores(name, value.shape, self.seed) for name, value in values.items()}

  def _kept(
    self, scores: dict[str, jax.Array], before: dict[str, jax.Array], axes: dict[str, tuple[str | None, ...]],
    sparsity: float | jax.Array,
  ) -> dict[str, jax.Array]:  # fmt: skip
    """Returns the masks of a sparsity; what was removed before stays so."""
    scores = {name: jnp.where(before[name], score, -jnp.inf) for name, score in scores.items()}
    if self.structure == "global":
      return {name: ~lost for name, lost in masks.removed_globally(scores, sparsity).items()}
    return {name: ~masks.removed(score, axes[name], self.structure, sparsity) for name, score in scores.items()}

  def update(self, params: Tree, grads: Tree, state: Tree, step: jax.Array) -> tuple[Tree, Tree]:
    if self.score in BY_GRADIENT:
      weights, slopes = pytree.named_leaves(params), pytree.named_leaves(grads)
      more = BY_GRADIENT[self.score]
      state = state | {
        "scores": pytree.map_named(lambda name, sum_: sum_ + more(weights[name], slopes[name]), state["scores"])
      }
    if self.end:
      kept = jax.lax.cond(
        self._is_due(step), self._grow, lambda params, state, step: state["masks"], params, state, step
      )
      state = state | {"masks": kept}
    return super().update(params, grads, state, step)

  def _is_due(self, step: jax.Array) -> jax.Array:
    inside = (step >= self.begin) & (step <= self.end)
    return inside & (((step - self.begin) % self.every == 0) | (step == self.end))

  def _grow(self, params: Tree, state: Tree, step: jax.Array) -> Tree:
    before, named = pytree.named_leaves(state["masks"]), pytree.named_leaves(params)
    time = jnp.clip((step - self.begin) / (self.end - self.begin), 0, 1)
    # Of a layer or of all layers: only whether a kernel is stacked matters, not which of its axes are outputs.
    axes = {
      name: ("layers" if "/layers/" in name else "width",) + ("width",) * (kept.ndim - 1)
      for name, kept in before.items()
    }
    by_gradient = self.score in BY_GRADIENT
    scores = (
      pytree.named_leaves(state["scores"]) if by_gradient else self._scores({name: named[name] for name in before})
    )
    after = self._kept(scores, before, axes, self.sparsity * (1 - (1 - time) ** 3))
    return traverse_util.unflatten_dict(after, sep="/")
