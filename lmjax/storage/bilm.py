"""ELMo models as bilm-tf saves them: options.json and an HDF5 file of weights (github.com/allenai/bilm-tf)."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from flax import linen as nn

from lmjax.data.tokenizers.words import SPECIAL, Words
from lmjax.models.elmo import DIRECTIONS, Config, ELMo
from lmjax.state import named_parameters
from lmjax.storage.base import LazyArray, Leaf, LoadedModel, SavedModel, Step, refuse_step, replace_dtype
from lmjax.storage.lazy import LazyTensor
from lmjax.storage.placement import layout_of
from lmjax.tasks.bidirectional_lm import BidirectionalLM
from lmjax.utils import files, pytree
from lmjax.utils.errors import UserError, reason
from lmjax.utils.fields import Fields
from lmjax.utils.pytree import Tree

LONGEST_WORD = ("max_characters_per_token", 50, 3, 1000)  # key, default, least and most
LARGEST_SIZE = 2**20  # of any dimension
MAX_WORDS = 1024  # of an input; ELMo itself has no limit


class BilmFolder(SavedModel):
  """A bilm-tf folder, small enough to be read at once. It has no softmax, so the model embeds and cannot predict."""

  def __init__(self, path: epath.PathLike, step: Step = None):
    refuse_step(path, step)
    self.path = epath.Path(path)

  @functools.cached_property
  def _loaded(self) -> tuple[ELMo, Tree]:
    return load(self.path, len(SPECIAL))

  @functools.cached_property
  def config(self) -> dict[str, Any]:
    return files.read_json(options_file(self.path))

  @functools.cached_property
  def task(self) -> BidirectionalLM:
    characters = Fields(self.config, options_file(self.path)).section("char_cnn")
    return BidirectionalLM(self._loaded[0], characters.integer(*LONGEST_WORD))

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

  def load(self, dtype: str | None = None, overrides: dict[str, str] | None = None) -> LoadedModel:
    task = replace_dtype(self.task, dtype) if dtype else self.task
    layout = layout_of(overrides)
    heads = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), nn.unbox(self.named["heads"]))
    params = {"model": jax.tree.map(jnp.asarray, self._loaded[1]), "heads": heads}
    return LoadedModel(task, self.tokenizer, MAX_WORDS, layout, params, 0, self.config)

  def files(self) -> dict[str, epath.Path]:
    return {file.name: file for file in (options_file(self.path), *sorted(self.path.glob("*weights*.hdf5")))}


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
  weights, options = sorted(folder.glob("*weights*.hdf5")), options_file(folder)
  if not options.exists() or not weights:
    raise UserError(f"{folder} is not a bilm-tf folder: it needs options.json and *weights*.hdf5")
  if len(weights) > 1:
    raise UserError(f"{folder} has several models, {', '.join(file.name for file in weights[:4])}; keep one")
  model = ELMo(_config(Fields(files.read_json(options), options), vocabulary))
  try:
    with files.reading(weights[0]), h5py.File(weights[0], "r") as file:
      return model, _parameters(model.config, file)
  except UserError:
    raise
  except Exception as error:  # what HDF5 raises for a corrupt file depends on where it is corrupt
    raise UserError(f"{weights[0]} cannot be read: {reason(error)}") from error


def options_file(folder: epath.Path) -> epath.Path:
  """Returns options.json, or the only file whose name ends so: those of published models have a prefix."""
  paths = list(folder.glob("*options.json"))
  return paths[0] if len(paths) == 1 else folder / "options.json"


def _read(file: Any, name: str, shape: tuple[int, ...] | None = None) -> np.ndarray:
  """Returns an array of an HDF5 file, if it has the shape that is expected and does not lie in another file.

  Nothing is read before that is known, whatever size a corrupt file names.
  """
  array = file[name]
  if not hasattr(array, "external") or not isinstance(array.shape, tuple):
    raise ValueError(f"{name} is not an array")
  if array.external or array.is_virtual or array.file.filename != file.filename:
    raise ValueError(f"{name} lies in another file")
  if shape is not None and array.shape != shape:
    raise ValueError(f"{name} has shape {list(array.shape)}, but options.json describes {list(shape)}")
  return array[...]


def _config(options: Fields, vocabulary: int) -> Config:
  """Returns the model that options.json describes."""
  lstm, characters = options.section("lstm"), options.section("char_cnn")
  clips = [lstm.number(key, 0.0, least=0) for key in ("cell_clip", "proj_clip")]
  if clips[0] != clips[1]:
    raise UserError(f"{options.where}: cell_clip and proj_clip differ, which lmjax does not support")
  sizes = dict(least=1, most=LARGEST_SIZE)
  filters, longest = characters.sequence("filters", list), characters.integer(*LONGEST_WORD)
  if not filters or not all(
    len(pair) == 2 and all(type(n) is int for n in pair) and 0 < pair[0] <= longest and 0 < pair[1] <= LARGEST_SIZE
    for pair in filters
  ):
    raise characters.wrong("filters", f"a list of [characters, filters], of up to {longest} characters")
  return Config(
    vocabulary=vocabulary,
    length=1,
    width=lstm.integer("projection_dim", **sizes),
    cells=lstm.integer("dim", **sizes),
    depth=lstm.integer("n_layers", 1, least=1, most=1000),
    clip=clips[0],
    skip=lstm.boolean("use_skip_connections"),
    embedding=characters.section("embedding").integer("dim", **sizes),
    filters=tuple((size, count) for size, count in filters),
    highways=characters.integer("n_highway", 0, most=1000),
    activation=characters.text("activation", choices=("relu", "tanh")),
    dropout=0.0,
  )


def _parameters(config: Config, file: Any) -> Tree:
  """Returns the parameters. TensorFlow keeps one kernel for input and state, with the gates in the order i, g, f, o."""

  def take(name: str, *shape: int) -> np.ndarray:
    return np.asarray(_read(file, name, shape), np.float32)

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
