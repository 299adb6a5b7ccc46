"""Models that the Flax classes of transformers (removed in version 5) saved: flax_model.msgpack, or shards of it."""

import numpy as np
from etils import epath
from flax import serialization, traverse_util

from lmjax.storage.safetensors import owners_of, shards
from lmjax.utils.errors import UserError, reason
from lmjax.utils.files import read_bytes

SINGLE, INDEX = "flax_model.msgpack", "flax_model.msgpack.index.json"
# The last part of a tensor's name in Flax and in PyTorch; a PyTorch kernel is the transpose, in every layer.
LAST = {"kernel": "weight", "scale": "weight", "embedding": "weight"}


class FlaxTensors:
  """The tensors of a folder under their PyTorch names; msgpack files are read into memory whole."""

  def __init__(self, folder: epath.PathLike):
    self._tensors: dict[str, np.ndarray] = {}
    folder = epath.Path(folder)
    self.files = shards(folder / INDEX) if (folder / INDEX).exists() else [folder / SINGLE]
    owners = owners_of(folder / INDEX) if (folder / INDEX).exists() else {}
    for file in self.files:
      try:
        tree = traverse_util.flatten_dict(serialization.msgpack_restore(read_bytes(file)))
        for path, array in tree.items():
          if owners.get("/".join(path), file.name) != file.name:
            continue
          *parents, last = path[0].split("/") if len(path) == 1 else path  # the keys of shards are joined already
          name = ".".join([*parents, LAST.get(last, last)])
          self._tensors[name] = array.T if last == "kernel" else np.asarray(array)
      except UserError:
        raise
      except Exception as error:  # msgpack and Flax raise many kinds
        raise UserError(f"{file} is corrupt: {reason(error)}") from error

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
  """Returns whether a folder has Flax files and no safetensors."""
  has_safetensors = any(folder.glob("*.safetensors")) or any(folder.glob("*.safetensors.index.json"))
  return not has_safetensors and any((folder / name).exists() for name in (SINGLE, INDEX))
