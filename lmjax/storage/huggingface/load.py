"""Models in Hugging Face's format, in and out: config.json, safetensors, tokenizer files; without transformers."""

import dataclasses
import json
import re
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
from etils import epath
from flax import linen as nn

from lmjax.data.tokenizers import registry
from lmjax.data.tokenizers.base import Tokenizer
from lmjax.layers.einsum import padded
from lmjax.models import encoder, encoder_decoder
from lmjax.storage.huggingface.families import FAMILIES, Family
from lmjax.storage.huggingface.flax_files import FlaxTensors, is_flax
from lmjax.storage.huggingface.weights import WeightMap, arrange
from lmjax.storage.lazy import LazyTensor
from lmjax.storage.safetensors import Tensors
from lmjax.utils.errors import UserError, did_you_mean
from lmjax.utils.pytree import Tree

EXTRAS = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.txt", "vocab.json", "merges.txt",
          "spiece.model", "tokenizer.model", "added_tokens.json", "generation_config.json")  # fmt: skip
TOKENIZERS = ("tokenizer.json", "vocab.txt", "vocab.json", "spiece.model", "tokenizer.model", "kind.json",
              "characters.json", "bytes.json")  # fmt: skip
LABELS = ("sequence", "tokens", "span")  # heads of classes: of a text, of each token, of a span's two ends
POOLER = "pooler.dense.weight"


@dataclasses.dataclass(frozen=True)
class Loaded:
  """A model from a folder.

  params: {"model": ..., "heads": {...}}, each leaf LazyTensor: nothing is read before it is wanted.
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
    raise UserError(f"{file}: the architecture {kind!r} is not known here{did_you_mean(kind, FAMILIES)}")
  family = FAMILIES[kind]
  defaults = {"bert": {"type_vocab_size": 2}, "roberta": {"type_vocab_size": 1}}.get(kind, {})
  return settings, family, family.from_hf(defaults | settings)


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
  if isinstance(config, encoder_decoder.Config) and set(LABELS) & set(heads):
    config = dataclasses.replace(
      config, tie_embeddings=False
    )  # its table scores nothing, so vectors are not scaled for it
  lines, first = family.lines(config), family.lines(config)[0].hf
  prefixes = (family.prefixed(heads), *family.prefix.values(), "")
  prefix = next((p for p in prefixes if p + first in tensors), prefixes[0])
  beside = [line for line in family.extra_weights(config) if not heads or line.hf in tensors]
  params: dict[str, Any] = {"model": {}, "heads": {}}
  found = _Loader(folder, tensors, axis_sizes(config), config.depth)
  parts = [("model", lines, prefix), ("model", beside, ""), *(("heads", table, "") for table in heads.values())]
  for room, table, before in parts:
    for line in table:
      for path, leaf in found.take(line, before):
        _put(params[room], path, leaf)
  spare = [name for name in tensors if name not in found.taken and not name.endswith(family.ignore_suffixes)]
  if spare:
    shown = ", ".join(sorted(spare)[:8]) + (f" and {len(spare) - 8} more" if len(spare) > 8 else "")
    raise UserError(f"{folder}: tensors that nothing here reads: {shown}")
  tokenizer = _tokenizer(folder)
  if tokenizer and isinstance(config, encoder_decoder.Config):  # T5 begins to write with its padding
    tokenizer.start = settings.get("decoder_start_token_id", settings.get("pad_token_id", 0))
  return Loaded(family.module(config), params, tokenizer, settings, family)


def axis_sizes(config: Any) -> dict[str, int]:
  """Returns the sizes of the axis_sizes of the tables for a config."""
  rows = getattr(config, "length", 0) + getattr(config, "offset", 0)
  sizes = dict(V=config.vocabulary, D=config.width, E=config.width, F=config.mlp, P=rows)
  sizes |= dict(H=config.heads, G=getattr(config, "kv_heads", config.heads), K=config.head_size)
  if isinstance(config, encoder_decoder.Config):
    sizes["Q"] = config.num_buckets
  if isinstance(config, encoder.Config):
    sizes["T"] = config.token_types
  return sizes


def _heads(family: Family, config: Any, settings: dict[str, Any], tensors: Any) -> dict[str, tuple[WeightMap, ...]]:
  """Returns the tables of the heads whose tensors are all there.

  Of two that would read the same tensors it is the larger, else the one that the folder says its class has.
  """
  known = {head: lines for head, lines in family.heads(config).items() if all(li.hf in tensors for li in lines)}
  architecture = next(iter(settings.get("architectures") or ()), "")
  taken: set[str] = set()
  found = {}
  for head in sorted(known, key=lambda head: (-len(known[head]), family.architecture([head]) != architecture)):
    names = {line.hf for line in known[head]}
    if not names & taken:
      found[head] = known[head]
      taken |= names
  return found


def paths_of(line: WeightMap) -> list[str]:
  """Returns the paths of a line, `{query,key}` written out."""
  match = re.search(r"\{([^}]*)\}", line.lmjax)
  return [line.lmjax] if not match else [line.lmjax.replace(match[0], part) for part in match[1].split(",")]


@dataclasses.dataclass
class _Loader:
  """The tensors of a folder as our parameters, and which of them were taken."""

  folder: epath.Path
  tensors: Any
  sizes: dict[str, int]
  depth: int
  taken: set[str] = dataclasses.field(default_factory=set)

  def take(self, line: WeightMap, prefix: str) -> Iterator[tuple[str, LazyTensor]]:
    """Yields the parameters of a line, every one of its tensors looked at."""
    paths, layers = paths_of(line), self.depth if "{}" in line.hf else None
    for layer in range(layers or 1):
      self.taken.add(prefix + line.hf.format(layer))
      self._arranged(line, prefix, layer)
    rows = padded(self.sizes["V"]) if line.layout.startswith("V") else None
    for i, path in enumerate(paths):
      number = i if len(paths) > 1 else None
      yield path, LazyTensor(lambda layer, number=number: self._arranged(line, prefix, layer, number), layers, rows)

  def _arranged(self, line: WeightMap, prefix: str, layer: int | None, number: int | None = None) -> np.ndarray:
    name = prefix + line.hf.format(layer)
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


def _put(tree: dict[str, Any], path: str, leaf: LazyTensor) -> None:
  *parents, last = path.split("/")
  for parent in parents:
    tree = tree.setdefault(parent, {})
  tree[last] = leaf


def _tokenizer(folder: epath.Path) -> Tokenizer | None:
  """Returns the folder's tokenizer, None where it has none."""
  return registry.load(folder) if any((folder / name).exists() for name in TOKENIZERS) else None
