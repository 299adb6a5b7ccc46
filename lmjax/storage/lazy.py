"""Parameters that lie in somebody else's file: shape and type are known, values are read slice by slice."""

from collections.abc import Callable

import numpy as np


class LazyTensor:
  """One parameter, stacked of `layers` tensors or (None) made of a single one; every read makes new float32 values.

  tensor: gives the tensor of a layer, arranged as ours, mapped and not yet read. rows: of a vocabulary's table, which
  is padded here and not there; those behind the file's are zeros.
  """

  dtype = np.dtype(np.float32)

  def __init__(self, tensor: Callable[[int | None], np.ndarray], layers: int | None = None, rows: int | None = None):
    self._tensor, self._layers, self._rows = tensor, layers, rows
    one = tensor(None if layers is None else 0).shape
    one = one if rows is None else (rows, *one[1:])
    self.shape = one if layers is None else (layers, *one)
    self.ndim = len(self.shape)
    self.size = int(np.prod(self.shape, dtype=np.int64))

  def __getitem__(self, index) -> np.ndarray:
    """Returns what integers and slices cover; nothing else is read."""
    index = index if isinstance(index, tuple) else (index,)
    if self._layers is None:
      return self._read(None, index)
    first, rest = index[0] if index else slice(None), index[1:]
    if not isinstance(first, slice):
      return self._read(int(first), rest)
    layers = range(self._layers)[first]
    whole = np.empty((len(layers), *np.empty(self.shape[1:], np.bool_)[rest].shape), np.float32)
    for i, layer in enumerate(layers):
      whole[i] = self._read(layer, rest)
    return whole

  def __array__(self, dtype=None, copy=None) -> np.ndarray:
    return self[()].astype(dtype or self.dtype, copy=False)

  def _read(self, layer: int | None, index: tuple) -> np.ndarray:
    tensor = self._tensor(layer)
    if self._rows in (None, len(tensor)):
      return np.array(tensor[index], np.float32)
    rows = np.arange(self._rows)[index[0] if index else slice(None)]
    found = np.zeros((rows.size, *tensor.shape[1:]), np.float32)
    known = rows.reshape(-1)[rows.reshape(-1) < len(tensor)]
    found[: len(known)] = tensor[known]
    found = found[(slice(None), *index[1:])]
    return found if rows.ndim else found[0]
