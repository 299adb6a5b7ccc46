"""Parameters in a file of another library: shape and dtype are known, values are read slice by slice."""

from collections.abc import Callable
from typing import Any

import numpy as np
from etils import epath

from lmjax.utils.errors import UserError
from lmjax.utils.files import reading


def mapped(file: epath.PathLike, dtype: Any, offset: int, shape: tuple[int, ...]) -> np.ndarray:
  """Returns an array of a file, mapped and not yet read.

  Raises:
    UserError: the file cannot be read, or ends before the array does: it was as long when its header was read.
  """
  with reading(file):
    try:
      return np.memmap(file, dtype, "r", offset, shape)
    except ValueError as error:
      raise UserError(f"{file} became shorter while it was read; restore it") from error


class LazyTensor:
  """One float32 parameter, read from one tensor or stacked from one tensor per layer.

  Args:
    tensor: returns the tensor of a layer (of None, where there are no layers) in lmjax's arrangement, mapped and not
      yet read.
    layers: the number of layers; None for a parameter that is not stacked.
    padded_rows: the size of axis 0 where a vocabulary is padded in memory and not in the file; with zeros.
  """

  dtype = np.dtype(np.float32)

  def __init__(
    self, tensor: Callable[[int | None], np.ndarray], layers: int | None = None, padded_rows: int | None = None
  ):
    self._tensor, self._layers, self._padded_rows = tensor, layers, padded_rows
    shape = tensor(None if layers is None else 0).shape
    self.rows = None if padded_rows is None else shape[0]  # without the padding
    shape = shape if padded_rows is None else (padded_rows, *shape[1:])
    self.shape = shape if layers is None else (layers, *shape)
    self.ndim = len(self.shape)
    self.size = int(np.prod(self.shape, dtype=np.int64))

  def __getitem__(self, index: Any) -> np.ndarray:
    """Returns the values that integers and slices select; nothing else is read."""
    index = index if isinstance(index, tuple) else (index,)
    if self._layers is None:
      return self._read(None, index)
    first, rest = index[0] if index else slice(None), index[1:]
    if not isinstance(first, slice):
      return self._read(int(first), rest)
    layers = range(self._layers)[first]
    values = np.empty((len(layers), *np.empty(self.shape[1:], np.bool_)[rest].shape), np.float32)
    for i, layer in enumerate(layers):
      values[i] = self._read(layer, rest)
    return values

  def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
    return self[()].astype(dtype or self.dtype, copy=False)

  def _read(self, layer: int | None, index: tuple) -> np.ndarray:
    tensor = self._tensor(layer)
    if self._padded_rows in (None, len(tensor)):
      return np.array(tensor[index], np.float32)
    rows = np.arange(self._padded_rows)[index[0] if index else slice(None)]
    values = np.zeros((rows.size, *tensor.shape[1:]), np.float32)
    stored = rows.reshape(-1)[rows.reshape(-1) < len(tensor)]
    values[: len(stored)] = tensor[stored]
    values = values[(slice(None), *index[1:])]
    return values if rows.ndim else values[0]
