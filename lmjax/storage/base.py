"""Saved models: one interface over all formats, and how a path is recognised as one of them.

    saved = storage.open("runs/gpt2")     # a run folder, a Hugging Face or bilm-tf folder, or a single checkpoint
    saved.leaves                          # names, shapes and dtypes of the stored arrays, from metadata alone
    saved.parameters()                    # lmjax's parameters, each read when it is indexed
    saved.load()                          # task, tokenizer and parameters, ready to use

A format is imported when a path matches it, so a training run that starts from nothing imports none.
"""

import abc
import dataclasses
import math
import sys
from collections.abc import Callable
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath

from lmjax.data.tokenizers.base import Tokenizer
from lmjax.parallel.sharding import Layout, LogicallyPartitioned, is_partitioned
from lmjax.tasks.base import Task
from lmjax.utils import files, names, pytree, trust
from lmjax.utils.errors import UserError
from lmjax.utils.pytree import Tree


@dataclasses.dataclass(frozen=True)
class Leaf:
  """One stored array, as the metadata describes it."""

  name: str
  shape: tuple[int, ...]
  dtype: str
  sharding: str = ""  # the mesh axes that its dimensions were split over when it was saved
  axes: str = ""  # the logical names of its dimensions, where a config describes the model

  @property
  def count(self) -> int:
    return math.prod(self.shape)

  @property
  def bytes(self) -> int:
    return self.count * np.dtype(self.dtype).itemsize


class LazyArray(Protocol):
  """A parameter that is read when it is indexed or converted.

  rows: the number of true rows, where axis 0 is padded (a vocabulary); None elsewhere.
  """

  shape: tuple[int, ...]
  dtype: np.dtype
  rows: int | None

  def __getitem__(self, index: Any) -> np.ndarray: ...

  def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray: ...


BEST = "best"
Step = int | str | None  # of a checkpoint: its number, BEST, or None for the latest


@dataclasses.dataclass(frozen=True)
class LoadedModel:
  """A model ready to use."""

  task: Task
  tokenizer: Tokenizer
  length: int  # the longest input, in tokens (words, for ELMo)
  layout: Layout
  params: Tree
  step: int  # of the checkpoint; 0 where the format has no steps
  settings: dict[str, Any]  # the config
  run: Any = None  # the lmjax.experiment.Experiment of a run folder

  def __post_init__(self):
    report_not_finite(self.params, "the model")


class SavedModel(abc.ABC):
  """A model on disk, in one format. Creating the object reads metadata at most."""

  path: epath.Path
  trusted: frozenset[str] = frozenset()  # the modules that were trusted when it was opened

  @property
  def step(self) -> int | None:
    """The step of the checkpoint; None where the format has no steps."""
    return None

  @property
  @abc.abstractmethod
  def config(self) -> dict[str, Any]:
    """The plain data that describes the model."""

  @property
  @abc.abstractmethod
  def task(self) -> Task:
    """The task that the model is for."""

  @property
  @abc.abstractmethod
  def tokenizer(self) -> Tokenizer | None:
    """The tokenizer; None where the folder has none."""

  @property
  @abc.abstractmethod
  def named(self) -> Tree:
    """The abstract parameters of `task`, with their axis names."""

  @property
  @abc.abstractmethod
  def leaves(self) -> dict[str, Leaf]:
    """The stored arrays, under the names of the format."""

  @abc.abstractmethod
  def read(self, name: str) -> np.ndarray:
    """Returns one of the `leaves`."""

  @abc.abstractmethod
  def parameters(self) -> dict[str, LazyArray]:
    """Returns {path name: parameter} as the model uses them: averaged and merged, where the run does that."""

  @abc.abstractmethod
  def load(self, dtype: str | None = None, overrides: dict[str, str] | None = None) -> LoadedModel:
    """Returns the model on the devices of this machine.

    Args:
      dtype: of the computation; default the model's own.
      overrides: of a run's config, {"data.validation.files": "..."}; of other models, `mesh` and `rules` alone.

    Raises:
      UserError: the model cannot be loaded.
    """

  @abc.abstractmethod
  def files(self) -> dict[str, epath.Path]:
    """Returns the files that hold the parameters, by their names inside the format."""

  def arrays(self, named: Tree, layout: Layout) -> Tree:
    """Returns parameters on their shardings, of which each device reads its own slice.

    Args:
      named: abstract LogicallyPartitioned leaves, in any tree whose path names are those of `parameters`.
    """
    parameters = self.parameters()

    def leaf(name: str, box: LogicallyPartitioned) -> jax.Array:
      wanted, saved = box.value, parameters[name]
      sharding = layout.sharding(*box.names, shape=wanted.shape)
      return jax.make_array_from_callback(wanted.shape, sharding, lambda index: _read_slice(saved, index, wanted))

    return pytree.map_named(leaf, named, is_leaf=is_partitioned)

  @classmethod
  def save(cls, folder: epath.PathLike, source: "SavedModel", with_tokenizer: bool = True) -> None:
    """Writes a saved model in this format.

    Raises:
      UserError: the format cannot be written, or cannot hold the model.
    """
    raise UserError(f"{folder}: models cannot be written as {cls.__name__}")


@jax.jit
def _count_not_finite(params: Tree) -> Tree:
  return jax.tree.map(lambda leaf: jnp.sum(~jnp.isfinite(leaf)), params)


def report_not_finite(params: Tree, where: str) -> None:
  """Prints one line on stderr if weights are NaN or infinite.

  No error: who looks for their cause has to open such a model, and a row of a table that is not used does no harm.
  """
  counts = {name: int(count) for name, count in pytree.named_leaves(_count_not_finite(params)).items() if count}
  if counts and jax.process_index() == 0:
    first, total = next(iter(counts.items())), sum(counts.values())
    more = f"; {total:,} in {len(counts)} parameters" if len(counts) > 1 else ""
    print(f"lmjax: warning: {where} has NaN or infinite weights: {first[1]:,} in {first[0]}{more}", file=sys.stderr)


def _read_slice(saved: LazyArray, index: tuple[slice, ...], wanted: jax.ShapeDtypeStruct) -> np.ndarray:
  """Returns a slice of a parameter; where a vocabulary is padded further than the saved one, zeros."""
  if saved.shape == wanted.shape:
    return np.asarray(saved[index], wanted.dtype)
  rows = range(wanted.shape[0])[index[0]]
  values = saved[(slice(rows.start, min(rows.stop, saved.shape[0])), *index[1:])]
  array = np.zeros((len(rows), *values.shape[1:]), wanted.dtype)
  array[: len(values)] = values
  return array


def replace_dtype(task: Task, dtype: str) -> Task:
  """Returns a task whose model computes in another dtype."""
  model = type(task.model)(dataclasses.replace(task.model.config, dtype=dtype))
  return dataclasses.replace(task, model=model)


def _read_json(file: epath.Path) -> dict[str, Any]:
  """Returns the object in a file; empty where it cannot be read."""
  try:
    return files.read_json(file)
  except UserError:
    return {}


# Of the Hugging Face folders whose config.json names neither a model_type nor a class.
WEIGHTS = ("model.safetensors", "model.safetensors.index.json", "flax_model.msgpack", "pytorch_model.bin")


def _is_huggingface(path: epath.Path) -> bool:
  for folder in (path, *path.glob("0_*")):  # 0_Transformer, of sentence-transformers
    config = _read_json(folder / "config.json")
    is_model = any((folder / name).exists() for name in WEIGHTS)
    if {"model_type", "architectures"} & set(config) or (config and is_model):
      return True
  return False


def _is_bilm(path: epath.Path) -> bool:
  options = map(_read_json, path.glob("*options.json"))  # published models have a prefix
  return any({"lstm", "char_cnn"} <= set(settings) for settings in options) and any(path.glob("*weights*.hdf5"))


def _is_gguf(path: epath.Path) -> bool:
  return path.suffix == ".gguf" or any(path.glob("*.gguf"))


def _is_adapter(path: epath.Path) -> bool:
  return (path / "adapter_config.json").exists()


def _is_run(path: epath.Path) -> bool:
  return any((path / name).exists() for name in ("config.json", "checkpoints", "state"))  # `state`: a checkpoint


# How each format is recognised, and the dotted name of the class that reads it; the first match is taken.
FORMATS: tuple[tuple[Callable[[epath.Path], bool], str], ...] = (
  (lambda path: (path / "compressed.safetensors").exists(), "lmjax.storage.compressed:CompressedFolder"),
  (_is_adapter, "lmjax.storage.huggingface.adapter:AdapterFolder"),
  (_is_huggingface, "lmjax.storage.huggingface.folder:HuggingFaceFolder"),
  (_is_bilm, "lmjax.storage.bilm:BilmFolder"),
  (_is_run, "lmjax.storage.run:RunFolder"),
  (_is_gguf, "lmjax.storage.gguf.model:GGUFFile"),
)


def open(path: epath.PathLike, step: Step = None) -> SavedModel:
  """Returns the saved model at a path.

  Args:
    step: the checkpoint of a run folder: its number, or `best`, by config.checkpoint.metric; default the latest.

  Raises:
    UserError: there is no saved model, `step` is given for a format without steps, or a link leads out of the folder.
  """
  folder = files.find(path)
  if not folder.exists():
    raise UserError(f"{path} does not exist; give a run folder, a GGUF file, or a Hugging Face or bilm-tf folder")
  read = ["config.json", *(file.name for file in folder.glob("*options.json"))]  # to recognise a format
  trust.check_links(folder, *read)
  for matches, name in FORMATS:
    if matches(folder):
      trust.check_links(folder)
      saved = names.load(name)(folder, step)
      saved.trusted = trust.trusted()
      return saved
  raise UserError(
    f"{path} is not a saved model: it is neither a run folder (config.json, checkpoints/), nor a Hugging Face folder "
    "(config.json with a model_type), nor a bilm-tf folder (*options.json, *weights*.hdf5), nor a GGUF file (*.gguf)"
  )


def refuse_step(path: epath.PathLike, step: Step) -> None:
  """Raises UserError where a checkpoint is chosen in a format that has a single one."""
  if step is not None:
    raise UserError(f"{path} is not a run folder and has a single checkpoint; leave out --step and --best")
