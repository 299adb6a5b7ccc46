"""Models in Hugging Face's format, in and out: config.json, safetensors, tokenizer files; without transformers."""

import contextlib
import dataclasses
import json
import re
import shutil
from collections.abc import Iterator
from typing import Any

import numpy as np
from etils import epath
from flax import linen as nn

from lmjax.data import tokenizers
from lmjax.data.tokenizers import Tokenizer
from lmjax.interop import safetensors
from lmjax.interop.families import FAMILIES, Family
from lmjax.interop.safetensors import Tensors
from lmjax.interop.tables import Line, arrange
from lmjax.layers.einsum import padded
from lmjax.models import encdec, encoder
from lmjax.utils import pytree
from lmjax.utils.errors import UserError, nearest
from lmjax.utils.pytree import Tree

EXTRAS = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.txt", "vocab.json", "merges.txt",
          "spiece.model", "tokenizer.model", "added_tokens.json", "generation_config.json")  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Loaded:
  """A model from a folder: {"model": ..., "heads": {...}} as numpy arrays, and the folder's own settings."""

  model: nn.Module
  params: Tree
  tokenizer: Tokenizer | None
  settings: dict[str, Any]


def is_folder(path: epath.PathLike) -> bool:
  """Returns whether a folder looks like Hugging Face's: its config names a `model_type`."""
  try:
    return "model_type" in json.loads((epath.Path(path) / "config.json").read_text())
  except (OSError, ValueError):
    return False


def read_config(folder: epath.PathLike) -> tuple[dict[str, Any], Family, Any]:
  """Returns a folder's settings, its family and our config of it.

  Raises:
    UserError: no config.json, or one of an architecture that is not known.
  """
  file = epath.Path(folder) / "config.json"
  try:
    settings = json.loads(file.read_text())
    kind = settings["model_type"]
  except (OSError, ValueError, KeyError, TypeError) as error:
    raise UserError(f"{file} is no config of a Hugging Face model: {error}") from error
  if kind not in FAMILIES:
    raise UserError(f"{file}: the architecture {kind!r} is not known here{nearest(kind, FAMILIES)}")
  family = FAMILIES[kind]
  defaults = {"bert": {"type_vocab_size": 2}, "roberta": {"type_vocab_size": 1}}.get(kind, {})
  return settings, family, family.ours(defaults | settings)


def load(folder: epath.PathLike) -> Loaded:
  """Returns the model in a folder, tensor by tensor from the mapped files.

  Raises:
    UserError: a file is missing, damaged or pickled; a tensor is missing, left over or of another shape.
  """
  folder = epath.Path(folder).expanduser()
  settings, family, config = read_config(folder)
  tensors = Tensors(folder)
  names = _names(tensors, family)
  model_lines, head_lines = family.lines(config, names.__contains__)
  if hasattr(config, "pooler") and "pooler.dense.weight" not in names:
    config = dataclasses.replace(config, pooler=False)
    model_lines, head_lines = family.lines(config, names.__contains__)
  sizes, left = letters(config), dict(names)
  params: dict[str, Any] = {}
  for room, lines in (("model", model_lines), ("heads", head_lines)):
    for line in lines:
      for path, array in _take(line, tensors, left, names, sizes, config, folder):
        _put(params.setdefault(room, {}), path, array)
  spare = [name for name in left if not any(name.endswith(end) for end in family.ignored)]
  if spare:
    shown = ", ".join(sorted(spare)[:8]) + (f" and {len(spare) - 8} more" if len(spare) > 8 else "")
    raise UserError(f"{folder}: tensors that nothing here reads: {shown}")
  return Loaded(family.module(config), {"heads": {}} | params, _tokenizer(folder, config), settings)


def save(
  folder: epath.PathLike, model: nn.Module, params: Tree, tokenizer: Tokenizer | None = None,
  settings: dict[str, Any] | None = None, files: epath.PathLike | None = None,
) -> None:  # fmt: skip
  """Writes a model as Hugging Face's folder, which appears under its name when it is whole.

  Args:
    params: {"model": ..., "heads": {...}}.
    settings: those the folder had that the model came from; ours go over them.
    files: a folder whose tokenizer files are copied, instead of the tokenizer's own.

  Raises:
    UserError: the family is not theirs, or the folder exists and is not empty.
  """
  folder = epath.Path(folder).expanduser()
  if folder.exists() and any(folder.iterdir()):
    raise UserError(f"{folder} is not empty; name another folder")
  family, theirs = _family(model)
  flat = pytree.named_leaves(params)
  has = {line.theirs for line in _head_lines(family, model.config) if _first(line) in flat}
  model_lines, head_lines = family.lines(model.config, has.__contains__)
  theirs = (settings or {}) | theirs | {"architectures": [family.architecture]}
  dtype = np.dtype(safetensors.DTYPES[{"bfloat16": "BF16", "float16": "F16"}.get(_dtype(theirs), "F32")])
  part = folder.parent / (folder.name + ".part")
  with contextlib.ExitStack() as stack:
    stack.callback(lambda: shutil.rmtree(part, ignore_errors=True))
    part.mkdir(parents=True, exist_ok=True)
    plan = list(_theirs(model_lines, "model", flat, model.config, family.prefixes[0]))
    plan += list(_theirs(head_lines, "heads", flat, model.config, ""))
    shapes = {name: (dtype, shape) for name, shape, _ in plan}
    try:
      safetensors.write(part / "model.safetensors", shapes, (make() for _, _, make in plan))
      (part / "config.json").write_text(json.dumps(theirs, indent=2))
      for name in EXTRAS if files else ():
        if (epath.Path(files) / name).exists():
          (epath.Path(files) / name).copy(part / name)
      if tokenizer is not None and not files:
        tokenizer.save(part)
      if folder.exists():
        folder.rmdir()
      part.rename(folder)
    except OSError as error:
      raise UserError(f"{folder} could not be written: {error}; nothing was left behind") from error


def letters(config: Any) -> dict[str, int]:
  """Returns the sizes of the letters of the tables for a config."""
  rows = getattr(config, "length", 0) + getattr(config, "offset", 0)
  sizes = dict(V=config.vocabulary, D=config.width, E=config.width, F=config.mlp, P=rows)
  sizes |= dict(H=config.heads, G=getattr(config, "groups", config.heads), K=config.head_size)
  if isinstance(config, encdec.Config):
    sizes["Q"] = config.buckets
  if isinstance(config, encoder.Config):
    sizes["T"] = config.types
  return sizes


def _names(tensors: Tensors, family: Family) -> dict[str, str]:
  """Returns {name without its prefix: full name}."""
  found = {}
  for name in tensors:
    prefix = next(p for p in (*family.prefixes, "") if name.startswith(p))
    found[name[len(prefix) :]] = name
  return found


def _ours(line: Line) -> list[str]:
  """Returns the paths of a line, `{query,key}` written out."""
  match = re.search(r"\{([^}]*)\}", line.ours)
  return [line.ours] if not match else [line.ours.replace(match[0], part) for part in match[1].split(",")]


def _first(line: Line) -> str:
  return "heads/" + _ours(line)[0]


def _take(
  line: Line, tensors: Tensors, left: dict[str, str], names: dict[str, str], sizes: dict[str, int], config, folder
) -> Iterator[tuple[str, np.ndarray]]:
  """Yields the parameters of a line, one stacked array at a time."""
  paths, stacked = _ours(line), "{}" in line.theirs

  def one(layer: int) -> np.ndarray:
    name = line.theirs.format(layer)
    if name not in names:
      raise UserError(f"{folder}: the tensor {name} is missing")
    left.pop(name, None)
    try:
      return arrange(tensors[names[name]], line.layout, sizes)
    except ValueError as error:
      raise UserError(f"{folder}: {names[name]} {error}") from error

  for i, path in enumerate(paths):
    pick = (lambda x, i=i: x[i]) if len(paths) > 1 else lambda x: x
    if stacked:
      first = pick(one(0))
      array = np.empty((config.depth, *first.shape), np.float32)
      array[0] = first
      for layer in range(1, config.depth):
        array[layer] = pick(one(layer))
    else:
      found = pick(one(0))
      rows = padded(len(found)) if line.layout.startswith("V") else len(found)
      array = np.zeros((rows, *found.shape[1:]), np.float32)
      array[: len(found)] = found
    yield path, array


def _put(tree: dict[str, Any], path: str, array: np.ndarray) -> None:
  *parents, last = path.split("/")
  for parent in parents:
    tree = tree.setdefault(parent, {})
  tree[last] = array


def _theirs(lines: tuple[Line, ...], room: str, flat: dict[str, Any], config, prefix: str):
  """Yields for each of their tensors its name, its shape and a function that makes it."""
  sizes = letters(config)
  for line in lines:
    leaves = []
    for path in _ours(line):
      if f"{room}/{path}" not in flat:
        raise UserError(f"the model has no {room}/{path}, which {line.theirs} is made of")
      leaves.append(flat[f"{room}/{path}"])

    def make(layer: int | None, line=line, leaves=leaves) -> np.ndarray:
      # Only the layer asked for leaves the device.
      parts = [np.asarray(leaf if layer is None else leaf[layer]) for leaf in leaves]
      whole = parts[0] if len(parts) == 1 else np.stack(parts)
      whole = whole[: config.vocabulary] if line.layout.startswith("V") else whole
      return arrange(whole, line.layout, sizes, back=True)

    stacked = "{}" in line.theirs
    shape = _shape(line, sizes)
    for layer in range(config.depth) if stacked else (None,):
      yield prefix + line.theirs.format(layer), shape, (lambda layer=layer, make=make: make(layer))


def _shape(line: Line, sizes: dict[str, int]) -> tuple[int, ...]:
  """Returns the shape their tensor has."""
  shape, inside = [], None
  for token in line.layout.split(" -> ")[0].split():
    size = int(token.strip("()")) if token.strip("()").isdigit() else sizes[token.strip("()")]
    if token.startswith("("):
      inside = size
    elif inside is not None:
      inside *= size
    else:
      shape.append(size)
    if token.endswith(")"):
      shape.append(inside)
      inside = None
  return tuple(shape)


def _family(model: nn.Module) -> tuple[Family, dict[str, Any]]:
  """Returns the family that a model of ours is written as, and its config."""
  if not any(isinstance(model, family.module) for family in FAMILIES.values()):
    raise UserError(f"a {type(model).__name__} has no like among Hugging Face's models")
  family = FAMILIES[_kind(model)]
  return family, family.theirs(model.config)


def _kind(model: nn.Module) -> str:
  c = model.config
  if isinstance(c, encoder.Config):
    return "roberta" if c.offset else "bert" if c.types else "distilbert"
  if isinstance(c, encdec.Config):
    if c.positions != "relative" or c.bias or c.scaled or c.post_norm or c.norm != "rms":
      raise UserError("this encoder-decoder is no T5, and Hugging Face's models have no like of it")
    return "t5"
  if c.rotary is None:
    if c.gated or c.norm != "layer" or not c.bias or not c.tied or c.groups != c.heads or c.window:
      raise UserError("this decoder is neither GPT-1, GPT-2 nor Llama, and Hugging Face's models have no like of it")
    return "openai-gpt" if c.post_norm else "gpt2"
  if not c.gated or c.norm != "rms" or c.post_norm or c.bias:
    raise UserError("this decoder is no Llama, and Hugging Face's models have no like of it")
  return "qwen2" if c.qkv_bias else "mistral" if c.window else "llama"


def _head_lines(family: Family, config) -> tuple[Line, ...]:
  return family.lines(config, lambda name: True)[1]


def _dtype(theirs: dict[str, Any]) -> str:
  return str(theirs.get("dtype") or theirs.get("torch_dtype") or "float32")


def _tokenizer(folder: epath.Path, config) -> Tokenizer | None:
  """Returns the folder's tokenizer, None where it has none."""
  known = (
    "tokenizer.json",
    "vocab.txt",
    "vocab.json",
    "spiece.model",
    "tokenizer.model",
    "kind.json",
    "characters.json",
  )
  if not any((folder / name).exists() for name in (*known, "characters.json", "bytes.json")):
    return None
  return tokenizers.load(folder)
