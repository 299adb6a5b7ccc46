"""Magnitude pruning in training: masks that stay, grow by a schedule and survive a resume."""

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
  and do not change.

  sparsity: the fraction of values that are zero in the end. structure: `layer`, `output`, `global` or N:M, see
  `masks.removed`. score: `magnitude`, or `random` as a control. targets: a regular expression that is searched in the
  paths of kernels. begin, end, every: steps. seed: of random scores; a config's own seed where the config names the
  transform.

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
    if self.score not in ("magnitude", "random"):
      raise ValueError(f"the score is magnitude or random, not {self.score!r}")
    if self.every < 1 or self.begin < 0 or (self.end and self.end <= self.begin):
      raise ValueError("end comes after begin, and every is at least 1")
    if self.end and self.structure not in ("layer", "global"):
      raise ValueError(f"a schedule, with an end, needs the structure layer or global, not {self.structure}")
    check_pattern(self.targets)

  def init(self, params: Tree) -> tuple[Tree, Tree, Tree]:
    targets = self.kernels(params)
    kept = {name: jnp.ones(box.value.shape, bool) for name, box in targets.items()}
    if not self.end:
      values = {name: box.value for name, box in targets.items()}
      kept = self._kept(values, kept, {name: box.names for name, box in targets.items()}, self.sparsity)
    return params, {"masks": traverse_util.unflatten_dict(kept, sep="/")}, {}

  def _kept(
    self, values: dict[str, jax.Array], before: dict[str, jax.Array], axes: dict[str, tuple[str | None, ...]],
    sparsity: float | jax.Array,
  ) -> dict[str, jax.Array]:  # fmt: skip
    """Returns the masks of a sparsity; what was removed before stays so."""
    scores = {
      name: jnp.where(
        before[name],
        jnp.abs(value) if self.score == "magnitude" else masks.random_scores(name, value.shape, self.seed),
        -1.0,
      )
      for name, value in values.items()
    }
    if self.structure == "global":
      return {name: ~lost for name, lost in masks.removed_globally(scores, sparsity).items()}
    return {name: ~masks.removed(score, axes[name], self.structure, sparsity) for name, score in scores.items()}

  def update(self, params: Tree, grads: Tree, state: Tree, step: jax.Array) -> tuple[Tree, Tree]:
    if self.end:
      masks_ = jax.lax.cond(
        self._is_due(step), self._grow, lambda params, masks_, step: masks_, params, state["masks"], step
      )
      state = {"masks": masks_}
    return super().update(params, grads, state, step)

  def _is_due(self, step: jax.Array) -> jax.Array:
    inside = (step >= self.begin) & (step <= self.end)
    return inside & (((step - self.begin) % self.every == 0) | (step == self.end))

  def _grow(self, params: Tree, kept: Tree, step: jax.Array) -> Tree:
    before, named = pytree.named_leaves(kept), pytree.named_leaves(params)
    time = jnp.clip((step - self.begin) / (self.end - self.begin), 0, 1)
    # Of a layer or of all layers: only whether a kernel is stacked matters, not which of its axes are outputs.
    axes = {
      name: ("layers" if "/layers/" in name else "width",) + ("width",) * (kept.ndim - 1)
      for name, kept in before.items()
    }
    after = self._kept({name: named[name] for name in before}, before, axes, self.sparsity * (1 - (1 - time) ** 3))
    return traverse_util.unflatten_dict(after, sep="/")
