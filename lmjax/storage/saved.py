"""The parameters of a checkpoint, whatever wrote it: listed from metadata alone, read one by one when wanted."""

import dataclasses
import math
from typing import Protocol

import jax
import numpy as np
from etils import epath

from lmjax import checkpoint
from lmjax import experiment as experiments
from lmjax.parallel.sharding import LogicallyPartitioned
from lmjax.storage import bilm, huggingface
from lmjax.storage.safetensors import Tensors
from lmjax.utils import pytree
from lmjax.utils.errors import UserError


@dataclasses.dataclass(frozen=True)
class Leaf:
  """One parameter as metadata has it."""

  name: str
  shape: tuple[int, ...]
  dtype: str
  sharding: str = ""  # the mesh axes that its dimensions were split over when it was saved
  axes: str = ""  # its dimensions' logical names, where a config says what the model is

  @property
  def count(self) -> int:
    return math.prod(self.shape)

  @property
  def bytes(self) -> int:
    return self.count * np.dtype(self.dtype).itemsize


class Saved(Protocol):
  """Parameters on disk."""

  leaves: dict[str, Leaf]

  def read(self, name: str) -> np.ndarray:
    """Returns one parameter's values."""


class RunReader:
  """The parameters of a run folder's checkpoint."""

  def __init__(self, folder: epath.PathLike, step: int | None = None):
    self.folder = folder
    tree, self.step = checkpoint.metadata(folder, step)
    self.leaves, axes = {}, _axes(folder)
    for name, leaf in pytree.named_leaves(tree).items():
      spec = getattr(getattr(leaf, "sharding_metadata", None), "partition_spec", None) or ()
      split = ", ".join(str(axis) for axis in spec if axis)
      named = axes.get(name, ())
      names = ", ".join(map(str, named)) if len(named) == len(leaf.shape) else ""
      self.leaves[name] = Leaf(name, tuple(leaf.shape), np.dtype(leaf.dtype).name, split, names)

  def read(self, name: str) -> np.ndarray:
    wanted: dict = {}
    *parents, last = name.split("/")
    inner = wanted
    for parent in parents:
      inner = inner.setdefault(parent, {})
    where = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    leaf = self.leaves[name]
    inner[last] = jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=where)
    found, _ = checkpoint.load(self.folder, {"params": wanted}, self.step)
    return np.asarray(jax.tree.leaves(found)[0])


def run_of(path: epath.PathLike) -> epath.Path:
  """Returns the run folder that a path is, or that a checkpoint lies in."""
  return epath.Path(path).absolute().parent.parent if checkpoint.is_checkpoint(path) else epath.Path(path)


def _axes(folder: epath.PathLike) -> dict[str, tuple[str | None, ...]]:
  """Returns the logical axes of a run's parameters; nothing where its config is not there or cannot be built here."""
  folder = run_of(folder)
  try:
    run = experiments.build(experiments.load_config(folder) | {"mesh": {}}, folder)
  except UserError:
    return {}
  named = jax.tree_util.tree_leaves_with_path(run.named, is_leaf=lambda leaf: isinstance(leaf, LogicallyPartitioned))
  return {pytree.name(path): leaf.names for path, leaf in named}


class HuggingFaceReader:
  """The parameters of a folder in Hugging Face's format, under its own names."""

  def __init__(self, folder: epath.PathLike):
    self._tensors, self.step = Tensors(folder), None
    self.leaves = {
      name: Leaf(name.replace(".", "/"), self._tensors.shape(name), self._tensors.dtype(name).name)
      for name in self._tensors
    }
    self.leaves = {leaf.name: leaf for leaf in self.leaves.values()}

  def read(self, name: str) -> np.ndarray:
    return np.asarray(self._tensors[name.replace("/", ".")])


class ArrayReader:
  """The parameters of bilm-tf's files, few enough to be read at once."""

  def __init__(self, params: pytree.Tree):
    self._arrays, self.step = pytree.named_leaves(params), None
    self.leaves = {name: Leaf(name, array.shape, array.dtype.name) for name, array in self._arrays.items()}

  def read(self, name: str) -> np.ndarray:
    return self._arrays[name]


def open_checkpoint(path: epath.PathLike, step: int | None = None) -> Saved:
  """Returns the parameters at a path: a run folder, Hugging Face's or bilm-tf's, or a checkpoint by itself.

  Raises:
    UserError: none of them is there.
  """
  if huggingface.is_folder(path):
    return HuggingFaceReader(path)
  if bilm.is_folder(path):
    return ArrayReader(bilm.load(path)[1])
  if not (epath.Path(path) / "checkpoints").exists() and not checkpoint.is_checkpoint(path):
    raise UserError(f"{path} holds neither a run nor a model in Hugging Face's format")
  return RunReader(path, step)
