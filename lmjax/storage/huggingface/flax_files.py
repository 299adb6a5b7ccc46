"""Models as the Flax classes of transformers, gone since its version 5, saved them: flax_model.msgpack, or shards."""

import numpy as np
from etils import epath
from flax import serialization, traverse_util

from lmjax.storage.safetensors import shards
from lmjax.utils.errors import UserError

SINGLE, INDEX = "flax_model.msgpack", "flax_model.msgpack.index.json"
# The last part of a name, as PyTorch has it; a kernel there is the transpose of the one here, whatever the layer.
LAST = {"kernel": "weight", "scale": "weight", "embedding": "weight"}


class FlaxTensors:
  """The tensors of a folder under the names that PyTorch's classes give them; the format is read whole into memory."""

  def __init__(self, folder: epath.PathLike):
    self._tensors: dict[str, np.ndarray] = {}
    for file in _files(epath.Path(folder)):
      try:
        tree = traverse_util.flatten_dict(serialization.msgpack_restore(file.read_bytes()))
        for path, array in tree.items():
          *parents, last = path[0].split("/") if len(path) == 1 else path  # shards have their names in one
          name = ".".join([*parents, LAST.get(last, last)])
          self._tensors[name] = array.T if last == "kernel" else np.asarray(array)
      except Exception as error:  # msgpack and Flax raise many kinds
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"{file} is damaged: {reason}") from error

  def __iter__(self):
    return iter(self._tensors)

  def __contains__(self, name: str) -> bool:
    return name in self._tensors

  def __getitem__(self, name: str) -> np.ndarray:
    return self._tensors[name]

  def shape(self, name: str) -> tuple[int, ...]:
    """Returns the shape of a tensor."""
    return self._tensors[name].shape

  def dtype(self, name: str) -> np.dtype:
    """Returns the type of a tensor."""
    return self._tensors[name].dtype


def is_flax(folder: epath.Path) -> bool:
  """Returns whether the old format is all that a folder has."""
  newer = any(folder.glob("*.safetensors")) or any(folder.glob("*.safetensors.index.json"))
  return not newer and any((folder / name).exists() for name in (SINGLE, INDEX))


def _files(folder: epath.Path) -> list[epath.Path]:
  return shards(folder / INDEX) if (folder / INDEX).exists() else [folder / SINGLE]
