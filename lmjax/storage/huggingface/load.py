"""Reads a Hugging Face folder: config.json, tensors and tokenizer files."""

import dataclasses
import functools
import json
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
from etils import epath
from flax import linen as nn
from flax import traverse_util

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
from lmjax.utils.trust import check_links

TOKENIZERS = ("tokenizer.json", "vocab.txt", "vocab.json", "spiece.model", "tokenizer.model", "kind.json",
              "characters.json", "bytes.json")  # fmt: skip
LABELS = ("sequence", "tokens", "span")  # classification heads: of a sequence, of each token, of a span's two ends
POOLER = "pooler.dense.weight"


@dataclasses.dataclass(frozen=True)
class Loaded:
  """A model from a folder.

  params: {"model": ..., "heads": {...}} of LazyTensor; values are read when they are indexed. settings: config.json.
  """

  model: nn.Module
  params: Tree
  tokenizer: Tokenizer | None
  settings: dict[str, Any]
  family: Family

  @property
  def labels(self) -> str:
    """The classification head, `sequence`, `tokens` or `span`; empty if there is none."""
    return next((head for head in LABELS if head in self.params["heads"]), "")

  def arrays(self) -> Tree:
    """Returns the parameters as numpy arrays in memory."""
    return jax.tree.map(np.asarray, self.params)


def open_tensors(folder: epath.PathLike) -> Tensors | FlaxTensors:
  """Returns the tensors of a folder by name: safetensors mapped, the old Flax format read into memory."""
  folder = epath.Path(folder)
  return FlaxTensors(folder) if is_flax(folder) else Tensors(folder)


def read_config(folder: epath.PathLike) -> tuple[dict[str, Any], Family, Any]:
  """Returns a folder's config.json, its family and the lmjax config of the model.

  Raises:
    UserError: config.json is missing, or names an architecture that lmjax does not have.
  """
  file = epath.Path(folder) / "config.json"
  try:
    settings = json.loads(file.read_text())
    kind = settings["model_type"]
  except (OSError, ValueError, KeyError, TypeError) as error:
    raise UserError(f"{file} is not the config of a Hugging Face model: {error}") from error
  if kind not in FAMILIES:
    raise UserError(f"{file}: the architecture {kind!r} is not supported{did_you_mean(kind, FAMILIES)}")
  family = FAMILIES[kind]
  defaults = {"bert": {"type_vocab_size": 2}, "roberta": {"type_vocab_size": 1}}.get(kind, {})
  return settings, family, family.from_hf(defaults | settings)


def load(folder: epath.PathLike) -> Loaded:
  """Returns the model of a folder, with the shape of every tensor checked and no value read.

  Raises:
    UserError: a file is missing, corrupt or pickled; a tensor is missing, unknown or of another shape.
  """
  folder = epath.Path(folder).expanduser()
  check_links(folder)
  return assemble(folder, *read_config(folder), open_tensors(folder), load_tokenizer(folder))


def assemble(
  folder: epath.Path, settings: dict[str, Any], family: Family, config: Any, tensors: Any, tokenizer: Any = None
) -> Loaded:
  """Returns the model of a config and tensors; see `load`.

  Args:
    folder: names the model in messages.
    tensors: by the names of Hugging Face's models; see `storage.safetensors.Tensors`.
    tokenizer: a Tokenizer, or None; the start of an encoder-decoder's is set.

  Raises:
    UserError: as `load`.
  """
  if hasattr(config, "pooler"):
    config = dataclasses.replace(config, pooler=any(name.endswith(POOLER) for name in tensors))
  heads = _find_heads(family, config, settings, tensors)
  if isinstance(config, encoder_decoder.Config) and set(LABELS) & set(heads):
    # A T5 with tied embeddings scales its final vectors before they are scored; a classifier takes them unscaled.
    config = dataclasses.replace(config, tie_embeddings=False)
  weights = family.weights(config)
  prefixes = (family.prefix_under(heads), *family.prefix.values(), "")
  prefix = next((p for p in prefixes if p + weights[0].hf in tensors), prefixes[0])
  extra = [weight for weight in family.extra_weights(config) if not heads or weight.hf in tensors]
  reader = _Reader(folder, tensors, axis_sizes(config), config.depth)
  params: dict[str, Any] = {}
  tables = [("model", weights, prefix), ("model", extra, ""), *(("heads", table, "") for table in heads.values())]
  for part, table, start in tables:
    for weight in table:
      params |= {f"{part}/{path}": tensor for path, tensor in reader.take(weight, start)}
  unused = [name for name in tensors if name not in reader.taken and not name.endswith(family.ignore_suffixes)]
  if unused:
    names = ", ".join(sorted(unused)[:8]) + (f" and {len(unused) - 8} more" if len(unused) > 8 else "")
    raise UserError(f"{folder}: the model does not use the tensors {names}")
  if tokenizer and isinstance(config, encoder_decoder.Config):  # T5 starts decoding from its padding token
    tokenizer.start = settings.get("decoder_start_token_id", settings.get("pad_token_id", 0))
  tree = {"heads": {}} | traverse_util.unflatten_dict(params, sep="/")
  return Loaded(family.module(config), tree, tokenizer, settings, family)


def axis_sizes(config: Any) -> dict[str, int]:
  """Returns the size of every axis letter that the layouts of a model use."""
  positions = getattr(config, "length", 0) + getattr(config, "offset", 0)
  sizes = dict(V=config.vocabulary, D=config.width, E=config.width, F=config.mlp, P=positions)
  sizes |= dict(H=config.heads, G=getattr(config, "kv_heads", config.heads), K=config.head_size)
  if isinstance(config, encoder_decoder.Config):
    sizes["Q"] = config.num_buckets
  if isinstance(config, encoder.Config):
    sizes["T"] = config.token_types
  return sizes


def _find_heads(
  family: Family, config: Any, settings: dict[str, Any], tensors: Any
) -> dict[str, tuple[WeightMap, ...]]:
  """Returns the weights of each head whose tensors are all in the folder.

  Where two heads would read the same tensors, the larger one is taken, or the one of the class that config.json names.
  """
  complete = {head: table for head, table in family.heads(config).items() if all(w.hf in tensors for w in table)}
  architecture = next(iter(settings.get("architectures") or ()), "")
  taken: set[str] = set()
  heads = {}
  for head in sorted(complete, key=lambda head: (-len(complete[head]), family.architecture([head]) != architecture)):
    names = {weight.hf for weight in complete[head]}
    if not names & taken:
      heads[head] = complete[head]
      taken |= names
  return heads


@dataclasses.dataclass
class _Reader:
  """Turns the tensors of a folder into parameters, and records which it has used."""

  folder: epath.Path
  tensors: Any
  sizes: dict[str, int]
  depth: int
  taken: set[str] = dataclasses.field(default_factory=set)

  def take(self, weight: WeightMap, prefix: str) -> Iterator[tuple[str, LazyTensor]]:
    """Yields the path and the parameter of each path of a weight, after checking the shape in every layer."""
    layers = self.depth if weight.stacked else None
    for layer in range(layers or 1):
      self.taken.add(prefix + weight.hf.format(layer))
      self._arrange(weight, prefix, layer)
    rows = padded(self.sizes["V"]) if weight.layout.startswith("V") else None
    for i, path in enumerate(weight.paths):
      number = i if len(weight.paths) > 1 else None
      yield path, LazyTensor(functools.partial(self._arrange, weight, prefix, number=number), layers, rows)

  def _arrange(self, weight: WeightMap, prefix: str, layer: int | None, number: int | None = None) -> np.ndarray:
    """Returns a tensor in lmjax's arrangement, or one of the parameters in it; a view of the mapped file."""
    name = prefix + weight.hf.format(layer)
    if name not in self.tensors:
      raise UserError(f"{self.folder}: the tensor {name} is missing")
    sizes = self.sizes
    if weight.layout.startswith("Y"):  # classes: as many as the file has
      sizes = sizes | {"Y": self.tensors.shape(name)[0]}
    try:
      array = arrange(self.tensors[name], weight.layout, sizes)
    except ValueError as error:
      raise UserError(f"{self.folder}: {name} {error}") from error
    return array if number is None else array[number]


def load_tokenizer(folder: epath.Path) -> Tokenizer | None:
  """Returns the tokenizer of a folder; None where it has none."""
  return registry.load(folder) if any((folder / name).exists() for name in TOKENIZERS) else None
