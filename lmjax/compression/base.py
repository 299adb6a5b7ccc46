"""ParamTransform: how the trained tree differs from what the model sees."""

import dataclasses
from typing import Protocol

from lmjax.utils.pytree import Tree


class ParamTransform(Protocol):
  """A change of the parameter tree, kept out of the models: pruning, LoRA, quantization-aware training, freezing."""

  def init(self, params: Tree) -> tuple[Tree, Tree]:
    """Returns the trained parameters and the transform's own state: (params, masks), ({a, b}, {})."""

  def forward(self, params: Tree, state: Tree, frozen: Tree) -> Tree:
    """Returns what the model sees; runs inside the loss, may wrap leaves, never materialises them."""

  def update(self, params: Tree, grads: Tree, state: Tree, step) -> tuple[Tree, Tree]:
    """Returns parameters and state after an optimizer update."""

  def merge(self, params: Tree, state: Tree, frozen: Tree) -> Tree:
    """Returns a plain tree, for export only."""


@dataclasses.dataclass(frozen=True)
class Identity:
  """The model sees what is trained."""

  def init(self, params: Tree) -> tuple[Tree, Tree]:
    return params, {}

  def forward(self, params: Tree, state: Tree, frozen: Tree) -> Tree:
    return params

  def update(self, params: Tree, grads: Tree, state: Tree, step) -> tuple[Tree, Tree]:
    return params, state

  def merge(self, params: Tree, state: Tree, frozen: Tree) -> Tree:
    return params
