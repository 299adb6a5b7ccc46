"""Several ParamTransforms, one after the other."""

import dataclasses

import jax

from lmjax.compression.base import ParamTransform
from lmjax.utils.pytree import Tree


@dataclasses.dataclass(frozen=True)
class Chain:
  """Several transforms by name: the trained tree of each is the `params` of the next; the first is next to the model.

  The optimizer updates the trained tree of the last one. `update` passes this tree from the last to the first, so if an
  earlier transform has an `update` of its own, only the last one may change the structure of the tree.
  """

  transforms: dict[str, ParamTransform]

  def __post_init__(self):
    if not self.transforms:
      raise ValueError("transforms must not be empty")

  def init(self, params: Tree) -> tuple[Tree, Tree, Tree]:
    states, frozen = {}, {}
    for name, transform in self.transforms.items():
      params, states[name], frozen[name] = transform.init(params)
    return params, states, frozen

  def forward(self, params: Tree, state: Tree, frozen: Tree) -> Tree:
    for name, transform in reversed(self.transforms.items()):
      params = transform.forward(params, state[name], frozen[name])
    return params

  def update(self, params: Tree, grads: Tree, state: Tree, step: jax.Array) -> tuple[Tree, Tree]:
    after = dict(state)
    for name, transform in reversed(self.transforms.items()):
      params, after[name] = transform.update(params, grads, state[name], step)
    return params, after

  def merge(self, params: Tree, state: Tree, frozen: Tree) -> Tree:
    for name, transform in reversed(self.transforms.items()):
      params = transform.merge(params, state[name], frozen[name])
    return params

  def metrics(self, params: Tree, state: Tree) -> dict[str, jax.Array]:
    return {
      f"{name}_{key}": value
      for name, transform in self.transforms.items()
      for key, value in transform.metrics(params, state[name]).items()
    }
