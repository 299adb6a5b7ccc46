"""Some of the layers of a saved model, for a model with fewer of them."""

import functools
from collections.abc import Sequence

import numpy as np

from lmjax.optim.fine_tuning import NUMBERED, STACKED
from lmjax.parallel.sharding import Layout
from lmjax.storage.base import LazyArray, SavedModel
from lmjax.storage.run import Deferred
from lmjax.utils.errors import UserError
from lmjax.utils.pytree import Tree


class ChosenLayers:
  """A saved model of which layer i is layer `layers[i]` of another one.

  An encoder-decoder has those layers in both stacks.
  """

  def __init__(self, saved: SavedModel, layers: Sequence[int]):
    self._saved, self._layers = saved, tuple(layers)

  @property
  def step(self) -> int | None:
    return self._saved.step

  def parameters(self) -> dict[str, LazyArray]:
    """Returns {path name: parameter}; see `SavedModel.parameters`.

    Raises:
      UserError: there is no such layer.
    """
    source, chosen = self._saved.parameters(), {}
    for name, array in source.items():
      if STACKED.search(name):
        self._check(array.shape[0])
        shape = (len(self._layers), *array.shape[1:])
        chosen[name] = Deferred(shape, array.dtype, None, functools.partial(self._pick, array))
      elif not NUMBERED.search(name):
        chosen[name] = array
    return chosen | self._numbered(source)

  def arrays(self, named: Tree, layout: Layout) -> Tree:
    """Returns parameters on their shardings; see `SavedModel.arrays`."""
    return SavedModel.arrays(self, named, layout)

  def _pick(self, array: LazyArray) -> np.ndarray:
    return np.stack([array[layer] for layer in self._layers])

  def _numbered(self, source: dict[str, LazyArray]) -> dict[str, LazyArray]:
    """Returns the parameters of layers that are not stacked, under the numbers of their new places."""
    layers: dict[tuple[str, int], dict[str, LazyArray]] = {}
    for name, array in source.items():
      if match := NUMBERED.search(name):
        layers.setdefault((match[1], int(match[2])), {})[name] = array
    chosen = {}
    for kind in {kind for kind, _ in layers}:
      self._check(1 + max(number for other, number in layers if other == kind))
      for place, layer in enumerate(self._layers):
        for name, array in layers[kind, layer].items():
          chosen[NUMBERED.sub(f"/{kind}_{place}/", name)] = array
    return chosen

  def _check(self, depth: int) -> None:
    if not all(0 <= layer < depth for layer in self._layers):
      raise UserError(f"config.start.layers: {list(self._layers)} are not all layers of a model that has {depth}")
