"""ELMo models as bilm-tf saves them: options.json and an HDF5 file of weights (github.com/allenai/bilm-tf)."""

import functools
import json
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from flax import linen as nn

from lmjax.data.tokenizers.words import SPECIAL, Words
from lmjax.models.elmo import DIRECTIONS, Config, ELMo
from lmjax.parallel.mesh import MeshShape
from lmjax.parallel.sharding import Layout
from lmjax.state import named_parameters
from lmjax.storage.base import LazyArray, Leaf, LoadedModel, SavedModel, refuse_step, replace_dtype
from lmjax.storage.lazy import LazyTensor
from lmjax.tasks.bidirectional_lm import BidirectionalLM
from lmjax.utils import pytree
from lmjax.utils.errors import UserError
from lmjax.utils.pytree import Tree

MAX_WORDS = 1024  # of an input; ELMo itself has no limit


class BilmFolder(SavedModel):
  """A bilm-tf folder, small enough to be read at once. It has no softmax, so the model embeds and cannot predict."""

  def __init__(self, path: epath.PathLike, step: int | None = None):
    refuse_step(path, step)
    self.path = epath.Path(path)

  @functools.cached_property
  def _loaded(self) -> tuple[ELMo, Tree]:
    return load(self.path, len(SPECIAL))

  @functools.cached_property
  def config(self) -> dict[str, Any]:
    return json.loads((self.path / "options.json").read_text())

  @functools.cached_property
  def task(self) -> BidirectionalLM:
    return BidirectionalLM(self._loaded[0], self.config["char_cnn"].get("max_characters_per_token", 50))

  @property
  def tokenizer(self) -> Words:
    return Words(SPECIAL, "spaces")

  @functools.cached_property
  def named(self) -> Tree:
    return named_parameters(self.task, 1, 1)

  @functools.cached_property
  def leaves(self) -> dict[str, Leaf]:
    arrays = pytree.named_leaves(self._loaded[1])
    return {name: Leaf(name, array.shape, array.dtype.name) for name, array in arrays.items()}

  def read(self, name: str) -> np.ndarray:
    return pytree.named_leaves(self._loaded[1])[name]

  def parameters(self) -> dict[str, LazyArray]:
    arrays = pytree.named_leaves({"model": self._loaded[1]})
    return {name: _lazy(array) for name, array in arrays.items()}

  def load(self, dtype: str | None = None, overrides: dict[str, str] | None = None, best: bool = False) -> LoadedModel:
    refuse_step(self.path, None, best)
    task = replace_dtype(self.task, dtype) if dtype else self.task
    layout = Layout.build(MeshShape().build(jax.local_devices()[:1]), "ddp")
    heads = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), nn.unbox(self.named["heads"]))
    params = {"model": jax.tree.map(jnp.asarray, self._loaded[1]), "heads": heads}
    return LoadedModel(task, self.tokenizer, MAX_WORDS, layout, params, 0, self.config)

  def files(self) -> dict[str, epath.Path]:
    return {file.name: file for file in (self.path / "options.json", *sorted(self.path.glob("*weights*.hdf5")))}


def _lazy(array: np.ndarray) -> LazyTensor:
  return LazyTensor(lambda _: array)


def load(folder: epath.PathLike, vocabulary: int = 1) -> tuple[ELMo, Tree]:
  """Returns the model and its parameters from a folder with options.json and one HDF5 file of weights.

  Args:
    vocabulary: the size that the config gets; the format itself has no softmax.

  Raises:
    UserError: a file is missing or corrupt, or a weight does not have the shape that the options describe.
  """
  import h5py  # an import of half a second that nothing else needs

  folder = epath.Path(folder)
  weights = sorted(folder.glob("*weights*.hdf5"))
  if not (folder / "options.json").exists() or not weights:
    raise UserError(f"{folder} is not a bilm-tf folder: it needs options.json and *weights*.hdf5")
  try:
    options = json.loads((folder / "options.json").read_text())
    model = ELMo(_config(options, vocabulary))
    with h5py.File(weights[0], "r") as file:
      return model, _parameters(model.config, lambda name: _read(file, name))
  except (OSError, ValueError, KeyError) as error:
    raise UserError(f"{folder} cannot be read as a bilm-tf folder: {str(error).splitlines()[0]}") from error


def _read(file: Any, name: str) -> np.ndarray:
  """Returns an array of an HDF5 file; one that the file takes from another file is refused."""
  array = file[name]
  if not hasattr(array, "external"):
    raise ValueError(f"{name} is not an array")
  if array.external or array.is_virtual or array.file.filename != file.filename:
    raise ValueError(f"{name} lies in another file")
  return array[...]


def _config(options: dict[str, Any], vocabulary: int) -> Config:
  lstm, characters = options["lstm"], options["char_cnn"]
  if lstm.get("cell_clip", 0) != lstm.get("proj_clip", 0):
    raise ValueError("cell_clip and proj_clip differ, which lmjax does not support")
  return Config(
    vocabulary=vocabulary,
    length=1,
    width=lstm["projection_dim"],
    cells=lstm["dim"],
    depth=lstm.get("n_layers", 1),
    clip=float(lstm.get("cell_clip") or 0.0),
    skip=lstm["use_skip_connections"],
    embedding=characters["embedding"]["dim"],
    filters=tuple((size, count) for size, count in characters["filters"]),
    highways=characters.get("n_highway", 0),
    activation=characters["activation"],
    dropout=0.0,
  )


def _parameters(config: Config, read) -> Tree:
  """Returns the parameters. TensorFlow keeps one kernel for input and state, with the gates in the order i, g, f, o."""

  def take(name: str, *shape: int) -> np.ndarray:
    array = np.asarray(read(name), np.float32)
    if array.shape != shape:
      raise ValueError(f"{name} has shape {list(array.shape)}, but options.json describes {list(shape)}")
    return array

  size = sum(count for _, count in config.filters)
  words = {"table": take("char_embed", 261, config.embedding)}
  for i, (width, count) in enumerate(config.filters):
    kernel = take(f"CNN/W_cnn_{i}", 1, width, config.embedding, count)[0]
    words[f"filter_{i}"] = {"kernel": kernel, "bias": take(f"CNN/b_cnn_{i}", count)}
  for i in range(config.highways):
    for name, stored in (("gate", "carry"), ("transform", "transform")):
      kernel = take(f"CNN_high_{i}/W_{stored}", size, size)
      words[f"{name}_{i}"] = {"kernel": kernel, "bias": take(f"CNN_high_{i}/b_{stored}", size)}
  projection = take("CNN_proj/W_proj", size, config.width)
  words["project"] = {"kernel": projection, "bias": take("CNN_proj/b_proj", config.width)}
  params = {"words": words}
  for number, direction in enumerate(DIRECTIONS):
    for i in range(config.depth):
      cell = f"RNN_{number}/RNN/MultiRNNCell/Cell{i}/LSTMCell"
      kernel = take(f"{cell}/W_0", 2 * config.width, 4 * config.cells).reshape(2, config.width, 4, config.cells)
      bias = take(f"{cell}/B", 4 * config.cells).reshape(4, config.cells)
      layer = {"input": {"kernel": kernel[0], "bias": bias}, "hidden": {"kernel": kernel[1]}}
      if config.cells != config.width:
        layer["project"] = {"kernel": take(f"{cell}/W_P_0", config.cells, config.width)}
      params[f"{direction}_{i}"] = layer
  return params
