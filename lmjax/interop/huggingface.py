"""Models in Hugging Face's format, in and out: config.json, safetensors, tokenizer files; without transformers."""

import contextlib
import dataclasses
import json
import re
import shutil
from collections.abc import Iterable, Iterator
from typing import Any

import jax
import numpy as np
from etils import epath
from flax import linen as nn

from lmjax.data import tokenizers
from lmjax.data.tokenizers import Tokenizer
from lmjax.interop import safetensors, tokenizer_files
from lmjax.interop.families import FAMILIES, Family
from lmjax.interop.flax_files import FlaxTensors, is_flax
from lmjax.interop.mapped import Mapped
from lmjax.interop.safetensors import Tensors
from lmjax.interop.tables import Line, arrange
from lmjax.layers.einsum import padded
from lmjax.models import encdec, encoder
from lmjax.utils import pytree
from lmjax.utils.errors import UserError, nearest
from lmjax.utils.pytree import Tree

EXTRAS = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.txt", "vocab.json", "merges.txt",
          "spiece.model", "tokenizer.model", "added_tokens.json", "generation_config.json")  # fmt: skip
TOKENIZERS = ("tokenizer.json", "vocab.txt", "vocab.json", "spiece.model", "tokenizer.model", "kind.json",
              "characters.json", "bytes.json")  # fmt: skip
LABELS = ("sequence", "tokens", "span")  # heads of classes: of a text, of each token, of a span's two ends
POOLER = "pooler.dense.weight"
TIES = ("tie_word_embeddings", "scale_decoder_outputs")


@dataclasses.dataclass(frozen=True)
class Loaded:
  """A model from a folder.

  params: {"model": ..., "heads": {...}}, each leaf Mapped: nothing is read before it is wanted.
  """

  model: nn.Module
  params: Tree
  tokenizer: Tokenizer | None
  settings: dict[str, Any]
  family: Family

  @property
  def labels(self) -> str:
    """Which head of classes there is: sequence, tokens, span, or none of them."""
    return next((head for head in LABELS if head in self.params["heads"]), "")

  def arrays(self) -> Tree:
    """Returns the parameters read into memory, as numpy arrays."""
    return jax.tree.map(np.asarray, self.params)


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
  """Returns the model in a folder; its tensors are found and their shapes checked, and none is read.

  Safetensors stay mapped; the old Flax format, flax_model.msgpack, is read whole.

  Raises:
    UserError: a file is missing, damaged or pickled; a tensor is missing, left over or of another shape.
  """
  folder = epath.Path(folder).expanduser()
  settings, family, config = read_config(folder)
  tensors = FlaxTensors(folder) if is_flax(folder) else Tensors(folder)
  if hasattr(config, "pooler"):
    config = dataclasses.replace(config, pooler=any(name.endswith(POOLER) for name in tensors))
  heads = _heads(family, config, settings, tensors)
  if isinstance(config, encdec.Config) and set(LABELS) & set(heads):
    config = dataclasses.replace(config, tied=False)  # its table scores nothing, so vectors are not scaled for it
  lines, first = family.lines(config), family.lines(config)[0].theirs
  prefixes = (family.prefixed(heads), *family.prefix.values(), "")
  prefix = next((p for p in prefixes if p + first in tensors), prefixes[0])
  beside = [line for line in family.outside(config) if not heads or line.theirs in tensors]
  params: dict[str, Any] = {"model": {}, "heads": {}}
  found = _Found(folder, tensors, letters(config), config.depth)
  parts = [("model", lines, prefix), ("model", beside, ""), *(("heads", table, "") for table in heads.values())]
  for room, table, before in parts:
    for line in table:
      for path, leaf in found.take(line, before):
        _put(params[room], path, leaf)
  spare = [name for name in tensors if name not in found.taken and not name.endswith(family.ignored)]
  if spare:
    shown = ", ".join(sorted(spare)[:8]) + (f" and {len(spare) - 8} more" if len(spare) > 8 else "")
    raise UserError(f"{folder}: tensors that nothing here reads: {shown}")
  tokenizer = _tokenizer(folder)
  if tokenizer and isinstance(config, encdec.Config):  # T5 begins to write with its padding
    tokenizer.start = settings.get("decoder_start_token_id", settings.get("pad_token_id", 0))
  return Loaded(family.module(config), params, tokenizer, settings, family)


def save(
  folder: epath.PathLike, model: nn.Module, params: Tree, tokenizer: Tokenizer | None = None,
  settings: dict[str, Any] | None = None, files: epath.PathLike | None = None,
) -> None:  # fmt: skip
  """Writes a model as Hugging Face's folder, one tensor at a time; it appears under its name when it is whole.

  Args:
    params: {"model": ..., "heads": {...}}, of anything that gives a layer by its number: arrays, or Mapped.
    settings: those the folder had that the model came from; ours go over them.
    files: a folder whose tokenizer files are copied, instead of the tokenizer's own.

  Raises:
    UserError: the family is not theirs, or the folder exists and is not empty.
  """
  folder = epath.Path(folder).expanduser()
  if folder.exists() and any(folder.iterdir()):
    raise UserError(f"{folder} is not empty; name another folder")
  family, config, heads = _family(model), model.config, params["heads"]
  flat = pytree.named_leaves(params)
  theirs = family.theirs(config)
  if set(LABELS) & set(heads):  # whether the table scores words is then nobody's business
    theirs = {key: value for key, value in theirs.items() if key not in TIES}
  theirs = (settings or {}) | theirs | {"architectures": [family.architecture(heads)]}
  theirs |= _labels(heads, theirs)
  if tokenizer is not None and not files:
    theirs |= {"bos_token_id": tokenizer.start, "eos_token_id": tokenizer.end}
    theirs |= {"decoder_start_token_id": tokenizer.start} if isinstance(config, encdec.Config) else {}
  dtype = np.dtype(safetensors.DTYPES[{"bfloat16": "BF16", "float16": "F16"}.get(_dtype(theirs), "F32")])
  part = folder.parent / (folder.name + ".part")
  with contextlib.ExitStack() as stack:
    stack.callback(lambda: shutil.rmtree(part, ignore_errors=True))
    part.mkdir(parents=True, exist_ok=True)
    plan = list(_theirs(family.lines(config), "model", flat, config, family.prefixed(heads)))
    beside = [line for line in family.outside(config) if not heads or f"model/{line.ours}" in flat]
    plan += list(_theirs(beside, "model", flat, config, ""))
    for head in heads:
      if head not in family.heads(config):
        raise UserError(f"a {theirs['model_type']} has no head {head!r} among Hugging Face's models")
      plan += list(_theirs(family.heads(config)[head], "heads", flat, config, ""))
    shapes = {name: (dtype, shape) for name, shape, _ in plan}
    try:
      safetensors.write(part / "model.safetensors", shapes, (make() for _, _, make in plan))
      (part / "config.json").write_text(json.dumps(theirs, indent=2))
      for name in EXTRAS if files else ():
        if (epath.Path(files) / name).exists():
          (epath.Path(files) / name).copy(part / name)
      if tokenizer is not None and not files:
        reads = {encoder.Config: "pair", encdec.Config: "source"}.get(type(config), "")
        tokenizer_files.write(part, tokenizer, reads)
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


def _heads(family: Family, config: Any, settings: dict[str, Any], tensors: Any) -> dict[str, tuple[Line, ...]]:
  """Returns the tables of the heads whose tensors are all there.

  Of two that would read the same tensors it is the larger, else the one that the folder says its class has.
  """
  known = {head: lines for head, lines in family.heads(config).items() if all(li.theirs in tensors for li in lines)}
  said = next(iter(settings.get("architectures") or ()), "")
  taken: set[str] = set()
  found = {}
  for head in sorted(known, key=lambda head: (-len(known[head]), family.architecture([head]) != said)):
    names = {line.theirs for line in known[head]}
    if not names & taken:
      found[head] = known[head]
      taken |= names
  return found


def _labels(heads: Tree, theirs: dict[str, Any]) -> dict[str, Any]:
  """Returns the names of the classes of a head, where the settings do not have as many."""
  count = next((heads[head]["scores"]["kernel"].shape[-1] for head in LABELS if head in heads), 0)
  if not count or len(theirs.get("id2label", ())) == count:
    return {}
  names = {str(i): f"LABEL_{i}" for i in range(count)}
  return {"id2label": names, "label2id": {name: int(i) for i, name in names.items()}}


def _ours(line: Line) -> list[str]:
  """Returns the paths of a line, `{query,key}` written out."""
  match = re.search(r"\{([^}]*)\}", line.ours)
  return [line.ours] if not match else [line.ours.replace(match[0], part) for part in match[1].split(",")]


@dataclasses.dataclass
class _Found:
  """The tensors of a folder as our parameters, and which of them were taken."""

  folder: epath.Path
  tensors: Any
  sizes: dict[str, int]
  depth: int
  taken: set[str] = dataclasses.field(default_factory=set)

  def take(self, line: Line, prefix: str) -> Iterator[tuple[str, Mapped]]:
    """Yields the parameters of a line, every one of its tensors looked at."""
    paths, layers = _ours(line), self.depth if "{}" in line.theirs else None
    for layer in range(layers or 1):
      self.taken.add(prefix + line.theirs.format(layer))
      self._arranged(line, prefix, layer)
    rows = padded(self.sizes["V"]) if line.layout.startswith("V") else None
    for i, path in enumerate(paths):
      number = i if len(paths) > 1 else None
      yield path, Mapped(lambda layer, number=number: self._arranged(line, prefix, layer, number), layers, rows)

  def _arranged(self, line: Line, prefix: str, layer: int | None, number: int | None = None) -> np.ndarray:
    name = prefix + line.theirs.format(layer)
    if name not in self.tensors:
      raise UserError(f"{self.folder}: the tensor {name} is missing")
    sizes = self.sizes
    if line.layout.startswith("Y"):  # classes: whatever there are
      sizes = sizes | {"Y": self.tensors.shape(name)[0]}
    try:
      found = arrange(self.tensors[name], line.layout, sizes)
    except ValueError as error:
      raise UserError(f"{self.folder}: {name} {error}") from error
    return found if number is None else found[number]


def _put(tree: dict[str, Any], path: str, leaf: Mapped) -> None:
  *parents, last = path.split("/")
  for parent in parents:
    tree = tree.setdefault(parent, {})
  tree[last] = leaf


def _theirs(lines: Iterable[Line], room: str, flat: dict[str, Any], config, prefix: str):
  """Yields for each of their tensors its name, its shape and a function that makes it."""
  for line in lines:
    sizes, leaves = letters(config), []
    for path in _ours(line):
      if f"{room}/{path}" not in flat:
        raise UserError(f"the model has no {room}/{path}, which {line.theirs} is made of")
      leaves.append(flat[f"{room}/{path}"])
    if line.layout.startswith("Y"):
      sizes["Y"] = leaves[0].shape[-1]

    def make(layer: int | None, line=line, leaves=leaves, sizes=sizes) -> np.ndarray:
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


def _family(model: nn.Module) -> Family:
  """Returns the family that a model of ours is written as."""
  if not any(isinstance(model, family.module) for family in FAMILIES.values()):
    raise UserError(f"a {type(model).__name__} has no like among Hugging Face's models")
  return FAMILIES[_kind(model)]


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


def _dtype(theirs: dict[str, Any]) -> str:
  return str(theirs.get("dtype") or theirs.get("torch_dtype") or "float32")


def _tokenizer(folder: epath.Path) -> Tokenizer | None:
  """Returns the folder's tokenizer, None where it has none."""
  return tokenizers.load(folder) if any((folder / name).exists() for name in TOKENIZERS) else None
