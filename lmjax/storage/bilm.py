"""Models in bilm-tf's format: `options.json` and an HDF5 file of weights (github.com/allenai/bilm-tf)."""

import json
from typing import Any

import numpy as np
from etils import epath

from lmjax.models.elmo import DIRECTIONS, Config, ELMo
from lmjax.utils.errors import UserError
from lmjax.utils.pytree import Tree


def is_folder(path: epath.PathLike) -> bool:
  """Returns whether a folder looks like bilm-tf's: options of an LSTM and of characters, and weights."""
  folder = epath.Path(path)
  try:
    options = json.loads((folder / "options.json").read_text())
  except (OSError, ValueError):
    return False
  return isinstance(options, dict) and {"lstm", "char_cnn"} <= set(options) and any(folder.glob("*weights*.hdf5"))


def characters(folder: epath.PathLike) -> int:
  """Returns how many characters of a word such a model reads."""
  return json.loads((epath.Path(folder) / "options.json").read_text())["char_cnn"].get("max_characters_per_token", 50)


def load(folder: epath.PathLike, vocabulary: int = 1) -> tuple[ELMo, Tree]:
  """Returns the model and its parameters from a folder with `options.json` and one `*.hdf5` of weights.

  The format holds no softmax; `vocabulary` is what the model will say it has.

  Raises:
    UserError: a file is missing or damaged, or a weight has not the shape that the options say.
  """
  import h5py  # only here

  folder = epath.Path(folder)
  weights = sorted(p for p in folder.glob("*weights*.hdf5"))
  if not (folder / "options.json").exists() or not weights:
    raise UserError(f"{folder} holds no biLM: it needs options.json and *weights*.hdf5")
  try:
    options = json.loads((folder / "options.json").read_text())
    model = ELMo(_config(options, vocabulary))
    with h5py.File(weights[0], "r") as file:
      return model, _parameters(model.config, lambda name: file[name][...])
  except (OSError, ValueError, KeyError) as error:
    raise UserError(f"{folder} is no biLM that can be read: {str(error).splitlines()[0]}") from error


def _config(options: dict[str, Any], vocabulary: int) -> Config:
  cells, characters = options["lstm"], options["char_cnn"]
  if cells.get("cell_clip", 0) != cells.get("proj_clip", 0):
    raise ValueError("its cells and projections are clipped differently")
  return Config(
    vocabulary=vocabulary,
    length=1,
    width=cells["projection_dim"],
    cells=cells["dim"],
    depth=cells.get("n_layers", 1),
    clip=float(cells.get("cell_clip") or 0.0),
    skip=cells["use_skip_connections"],
    embedding=characters["embedding"]["dim"],
    filters=tuple((wide, count) for wide, count in characters["filters"]),
    highways=characters.get("n_highway", 0),
    activation=characters["activation"],
    dropout=0.0,
  )


def _parameters(config: Config, read) -> Tree:
  """Returns the parameters; TensorFlow keeps one kernel for input and state, its gates side by side: i, g, f, o."""

  def take(name: str, *shape: int) -> np.ndarray:
    found = np.asarray(read(name), np.float32)
    if found.shape != shape:
      raise ValueError(f"{name} has shape {list(found.shape)}, the options say {list(shape)}")
    return found

  size = sum(count for _, count in config.filters)
  words = {"table": take("char_embed", 261, config.embedding)}
  for i, (wide, count) in enumerate(config.filters):
    words[f"filter_{i}"] = take(f"CNN/W_cnn_{i}", 1, wide, config.embedding, count)[0]
    words[f"bias_{i}"] = take(f"CNN/b_cnn_{i}", count)
  for i in range(config.highways):
    for name, theirs in (("gate", "carry"), ("transform", "transform")):
      kernel = take(f"CNN_high_{i}/W_{theirs}", size, size)
      words[f"{name}_{i}"] = {"kernel": kernel, "bias": take(f"CNN_high_{i}/b_{theirs}", size)}
  projection = take("CNN_proj/W_proj", size, config.width)
  words["project"] = {"kernel": projection, "bias": take("CNN_proj/b_proj", config.width)}
  params = {"words": words}
  for number, direction in enumerate(DIRECTIONS):
    for i in range(config.depth):
      cell = f"RNN_{number}/RNN/MultiRNNCell/Cell{i}/LSTMCell"
      kernel = take(f"{cell}/W_0", 2 * config.width, 4 * config.cells).reshape(2, config.width, 4, config.cells)
      bias = take(f"{cell}/B", 4 * config.cells).reshape(4, config.cells)
      layer = {"input": {"kernel": kernel[0], "bias": bias}, "hidden": kernel[1]}
      if config.cells != config.width:
        layer["project"] = take(f"{cell}/W_P_0", config.cells, config.width)
      params[f"{direction}_{i}"] = layer
  return params
