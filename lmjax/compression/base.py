"""ParamTransform: how the trained parameters differ from those that the model uses."""

import dataclasses
from typing import Protocol

import jax

from lmjax.utils.pytree import Tree


class ParamTransform(Protocol):
  """A function on the parameter tree, of which models do not know: pruning, LoRA, quantization-aware training."""

  def init(self, params: Tree) -> tuple[Tree, Tree, Tree]:
    """Returns (trained, state, frozen) for new parameters.

    Every array of `params` is a LogicallyPartitioned with its axis names. The returned arrays may be too (see
    `layers.leaves.partition`); an array without names is sharded like the parameter whose path is part of its own.

    trained: takes the place of `params`; the optimizer updates it, and checkpoints contain it. state: saved but not
    trained, such as masks and ranges. frozen: never saved, but made again from `config.start` or the seed, such as the
    base of LoRA.
    """

  def forward(self, params: Tree, state: Tree, frozen: Tree) -> Tree:
    """Returns the model's parameters; called inside the loss. It may wrap leaves, but not materialise them."""

  def update(self, params: Tree, grads: Tree, state: Tree, step: jax.Array) -> tuple[Tree, Tree]:
    """Returns the trained tree and the state; called after each update of the optimizer, with its gradients."""

  def merge(self, params: Tree, state: Tree, frozen: Tree) -> Tree:
    """Returns the model's parameters as a tree of arrays, without leaf types; for export only."""

  def metrics(self, params: Tree, state: Tree) -> dict[str, jax.Array]:
    """Returns scalars to log, such as the sparsity."""


@dataclasses.dataclass(frozen=True)
class Identity:
  """No transform: the model uses the trained parameters."""

  def init(self, params: Tree) -> tuple[Tree, Tree, Tree]:
    return params, {}, {}

  def forward(self, params: Tree, state: Tree, frozen: Tree) -> Tree:
    return params

  def update(self, params: Tree, grads: Tree, state: Tree, step: jax.Array) -> tuple[Tree, Tree]:
    return params, state

  def merge(self, params: Tree, state: Tree, frozen: Tree) -> Tree:
    return params

  def metrics(self, params: Tree, state: Tree) -> dict[str, jax.Array]:
    return {}
