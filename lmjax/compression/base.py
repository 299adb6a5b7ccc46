"""ParamTransform: how the trained tree differs from what the model sees."""

import dataclasses
from typing import Protocol

import jax

from lmjax.utils.pytree import Tree


class ParamTransform(Protocol):
  """A change of the parameter tree, kept out of the models: pruning, LoRA, quantization-aware training, freezing."""

  def init(self, params: Tree) -> tuple[Tree, Tree, Tree]:
    """Returns (trained, state, frozen) for new parameters.

    Every array of `params` is a LogicallyPartitioned with its axis names. What is returned may be too (see
    `layers.leaves.partition`); an array without names is sharded like the parameter whose path occurs in its own.

    trained: what the optimizer updates and checkpoints hold; replaces `params`. state: saved too, not trained: masks,
    ranges. frozen: on the mesh but never saved, made again from `config.start` or the seed: the base of LoRA.
    """
    ...

  def forward(self, params: Tree, state: Tree, frozen: Tree) -> Tree:
    """Returns what the model sees of the trained tree; inside the loss: may wrap leaves, never materialises them."""
    ...

  def update(self, params: Tree, grads: Tree, state: Tree, step: jax.Array) -> tuple[Tree, Tree]:
    """Returns the trained tree and state after an optimizer update."""
    ...

  def merge(self, params: Tree, state: Tree, frozen: Tree) -> Tree:
    """Returns the model's parameters as a plain tree of arrays, for export only."""
    ...

  def metrics(self, params: Tree, state: Tree) -> dict[str, jax.Array]:
    """Returns scalars to log: sparsity, ranges."""
    ...


@dataclasses.dataclass(frozen=True)
class Identity:
  """The model sees what is trained."""

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
