"""Adapters in PEFT's format: low-rank changes of a Hugging Face model, added to its tensors as these are read."""

import contextlib
import functools
import json
import math
import os
import re
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
from etils import epath

from lmjax.storage import base as storage
from lmjax.storage.base import Leaf, Step, refuse_step
from lmjax.storage.huggingface.families import Family, note
from lmjax.storage.huggingface.folder import HuggingFaceFolder
from lmjax.storage.huggingface.load import TOKENIZERS, Loaded, assemble, depth_of, load, load_tokenizer, open_tensors
from lmjax.storage.huggingface.names import rename
from lmjax.storage.huggingface.sentence import transformer_folder
from lmjax.storage.huggingface.weights import WeightMap, unembedding, unembedding_bias
from lmjax.storage.safetensors import Tensors
from lmjax.utils import trust
from lmjax.utils.errors import UserError, one_line
from lmjax.utils.fields import Fields
from lmjax.utils.files import find, read_json

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
START = "base_model.model."  # of every name in the file of weights
FACTORS = {
  ".lora_A.weight": "a", ".lora_B.weight": "b", ".lora_embedding_A": "table_a", ".lora_embedding_B": "table_b",
}  # fmt: skip
# The only values of keys that change what an adapter computes; missing and null always are.
ONLY: dict[str, tuple[Any, ...]] = {
  "alora_invocation_tokens": (), "arrow_config": (), "bias": ("none",), "ensure_weight_tying": (False,),
  "init_lora_weights": (True, False, "gaussian", "eva", "orthogonal"), "kasa_config": (), "layer_replication": (),
  "lora_bias": (False,), "megatron_config": (), "monteclora_config": (), "target_parameters": ([],),
  "trainable_token_indices": (), "use_bdlora": (), "use_dora": (False,), "use_qalora": (False,), "velora_config": (),
}  # fmt: skip
# Keys of training, and those that the names in the file of weights say already.
IRRELEVANT = """
  auto_mapping base_model_name_or_path corda_config eva_config exclude_modules fan_in_fan_out inference_mode
  layers_pattern layers_to_transform loftq_config lora_dropout lora_ga_config megatron_core modules_to_save
  peft_version qalora_group_size revision runtime_config task_type
"""
TASKS = {"SEQ_CLS": "sequence", "TOKEN_CLS": "tokens", "QUESTION_ANS": "span"}  # and the heads they have
QUANTIFIERS, LONGEST = 5, 200  # of a pattern in a stranger's file, whose matching takes time


class Adapter(NamedTuple):
  """What adapter_config.json says.

  rank, alpha: of modules that no pattern matches. stabilized: whether alpha is divided by the root of the rank.
  """

  base: str
  task: str
  rank: int
  alpha: float
  stabilized: bool
  ranks: dict[str, int]
  alphas: dict[str, float]

  def rank_of(self, module: str) -> int:
    """Returns the rank of a module by its name."""
    return int(_match(self.ranks, module, self.rank))

  def scale_of(self, module: str) -> float:
    """Returns what the product of a module's factors is multiplied by."""
    rank = self.rank_of(module)
    return float(_match(self.alphas, module, self.alpha)) / (math.sqrt(rank) if self.stabilized else rank)


def _match(patterns: dict[str, Any], module: str, default: Any) -> Any:
  """Returns the value of the first pattern that is the end of a module's name, as PEFT finds it."""
  return next((value for key, value in patterns.items() if re.match(rf"(.*\.)?({key})$", module)), default)


def read_adapter(file: epath.Path) -> Adapter:
  """Returns the contents of an adapter_config.json.

  Raises:
    UserError: it is of another method than LoRA, or has an option that changes the result and is not supported.
  """
  fields = Fields(read_json(file), file)
  kind = fields.text("peft_type")
  if kind != "LORA":
    raise UserError(f"{file}: peft_type {one_line(repr(kind), 60)} is not supported: only LORA is")
  for key, values in ONLY.items():
    value = fields.get(key, None)
    if value is not None and not any(type(value) is type(one) and value == one for one in values):
      raise UserError(f"{file}: {key} {one_line(json.dumps(value), 60)} is not supported")
  targets = fields.get("target_modules", None)
  if not isinstance(targets, str | None):
    fields.sequence("target_modules", str)
  ranks, alphas = (fields.section(key, {}) for key in ("rank_pattern", "alpha_pattern"))
  for key in (*ranks.values, *alphas.values):
    _check_pattern(key, file)
  adapter = Adapter(
    base=fields.text("base_model_name_or_path", ""),
    task=fields.text("task_type", ""),
    rank=fields.integer("r", 8, least=1),
    alpha=fields.number("lora_alpha", 8.0),
    stabilized=fields.boolean("use_rslora", False),
    ranks={key: ranks.integer(key, least=1) for key in ranks.values},
    alphas={key: alphas.number(key) for key in alphas.values},
  )
  unknown = [
    key for key in fields.unused() if key not in IRRELEVANT.split() and fields.values[key] not in (None, False, {}, [])
  ]
  if unknown:
    note(f"{file}: {', '.join(sorted(unknown))} is not known and has no effect")
  return adapter


def _check_pattern(pattern: str, file: epath.Path) -> None:
  """Raises UserError for what is not a regular expression, or may take very long to match."""
  try:
    re.compile(pattern)
  except re.error as error:
    raise UserError(f"{file}: {one_line(repr(pattern), 60)} is not a regular expression: {error}") from error
  slow = re.search(r"\)[*+{]", pattern) or len(re.findall(r"[*+{]", pattern)) > QUANTIFIERS or len(pattern) > LONGEST
  if slow:
    raise UserError(f"{file}: the pattern {one_line(repr(pattern), 60)} is not supported: it may take long to match")


class AdapterTensors(Tensors):
  """The tensors of an adapter's folder."""

  def _find_files(self) -> list[epath.Path]:
    if (self.folder / WEIGHTS).exists():
      return [self.folder / WEIGHTS]
    if (self.folder / "adapter_model.bin").exists():
      raise UserError(
        f"{self.folder / 'adapter_model.bin'} is a pickle, and loading a pickle can run arbitrary code; load it with "
        "PEFT and save it as safetensors: model.save_pretrained(folder)"
      )
    raise UserError(f"{self.folder} has no {WEIGHTS}")


class Merged:
  """The tensors of a base model with those of an adapter in them, computed when a tensor is read."""

  def __init__(self, base: Any, adapter: Adapter, tensors: Tensors, loaded: Loaded, folder: epath.Path):
    self._base, self._tensors, self._folder = base, tensors, folder
    self.files = (folder / CONFIG, *tensors.files, *base.files)
    self._new: dict[str, tuple[tuple[int, ...], np.dtype, Callable[[], np.ndarray]]] = {}
    family, config = loaded.family, loaded.model.config
    self._stored = rename(base, family, family.weights(config), folder).names
    self._weights = weights_of(family, config)
    starts = sorted({*family.prefix.values(), ""}, key=len, reverse=True)
    canonical = lambda name: next(name.removeprefix(start) for start in starts if name.startswith(start))  # noqa: E731
    modules: dict[str, dict[str, str]] = {}
    for name in tensors:
      if not name.startswith(START):
        raise UserError(f"{folder}: the tensor {one_line(name)} is not one of an adapter: it must start with {START}")
      module = name.removeprefix(START)
      ending = next((ending for ending in FACTORS if module.endswith(ending)), None)
      if ending:
        modules.setdefault(module.removesuffix(ending), {})[FACTORS[ending]] = name
      elif ".lora_" in module:
        raise UserError(f"{folder}: the tensor {one_line(name)} is not supported")
      elif not module.endswith(".base_layer.weight"):  # a copy of the base's
        weight = canonical(module.replace(".modules_to_save.", "."))
        stored = self._stored.get(weight, weight)
        self._new[stored] = tensors.shape(name), tensors.dtype(name), functools.partial(tensors.__getitem__, name)
    for module, factors in modules.items():
      self._add(module, canonical(f"{module}.weight"), factors, family, adapter)
    embed = next(weight.hf for weight in family.weights(config) if weight.lmjax == "embed/table")
    if config.tie_embeddings and self._stored.get(embed) in self._new and family.unembed not in self._new:
      # PEFT changes the table of the inputs, and words are still scored by the one that both shared.
      self._new[family.unembed] = self._read(self._stored[embed])

  def _add(self, module: str, weight: str, factors: dict[str, str], family: Family, adapter: Adapter) -> None:
    """Adds the change of one module's weight."""
    part = "table_" if "table_a" in factors or "table_b" in factors else ""
    if set(factors) != {f"{part}a", f"{part}b"}:
      raise UserError(f"{self._folder}: the module {one_line(module)} has one factor of two")
    shared = next((w.hf for w in self._weights.values() if w.lmjax == "embed/table"), "")
    origin = self._stored.get(weight) or (self._stored.get(shared) if weight == family.unembed else None)
    if origin is None or weight not in self._weights:
      raise UserError(f"{self._folder}: the base model has no module {one_line(module)}")
    stored = self._stored.get(weight, weight)
    transposed = bool(part) or stores_inputs_first(self._weights[weight])
    a, b = (self._tensors.shape(factors[part + name]) for name in "ab")
    shape, scale = self._base.shape(origin), adapter.scale_of(module)
    change = () if len(a) != 2 or len(b) != 2 or a[0] != b[1] else (b[0], a[1])
    if a[:1] != (adapter.rank_of(module),):
      raise UserError(
        f"{self._folder}: {one_line(module)} has the shapes {a} and {b}, not rank {adapter.rank_of(module)}"
      )
    if tuple(shape) != (change[::-1] if transposed else change):
      raise UserError(f"{self._folder}: {one_line(module)} has factors {a} and {b} for a weight {list(shape)}")

    def merge() -> np.ndarray:
      low, high = (np.asarray(self._tensors[factors[part + name]], np.float32) for name in "ab")
      product = scale * (high @ low)
      return np.asarray(self._base[origin], np.float32) + (product.T if transposed else product)

    self._new[stored] = tuple(shape), np.dtype(np.float32), merge

  def _read(self, name: str) -> tuple[tuple[int, ...], np.dtype, Callable[[], np.ndarray]]:
    return self._base.shape(name), self._base.dtype(name), functools.partial(self._base.__getitem__, name)

  def __iter__(self) -> Iterator[str]:
    return iter(dict.fromkeys((*self._base, *self._new)))

  def __contains__(self, name: str) -> bool:
    return name in self._new or name in self._base

  def __getitem__(self, name: str) -> np.ndarray:
    return self._new[name][2]() if name in self._new else self._base[name]

  def shape(self, name: str) -> tuple[int, ...]:
    """Returns the shape of a tensor."""
    return self._new[name][0] if name in self._new else self._base.shape(name)

  def dtype(self, name: str) -> np.dtype:
    """Returns the type of a tensor."""
    return self._new[name][1] if name in self._new else self._base.dtype(name)


def weights_of(family: Family, config: Any) -> dict[str, WeightMap]:
  """Returns {name of a tensor: its row of the tables}, of a model with all heads that it can have, without experts."""
  heads = [weight for table in family.heads(config).values() for weight in table]
  scores = (*unembedding(family.unembed), *unembedding_bias(family.unembed, config))
  rows = (*family.weights(config), *scores, *heads)
  return {
    weight.hf.format(layer): weight
    for weight in rows
    if not weight.of_experts
    for layer in range(depth_of(config, weight) if weight.stacked else 1)
  }


def stores_inputs_first(weight: WeightMap) -> bool:
  """Returns whether a kernel's tensor is inputs x outputs, as in GPT-2: what PEFT calls fan_in_fan_out."""
  return weight.lmjax.endswith("kernel") and split_layout(weight.layout.split(" | ")[0])[0]


def split_layout(layout: str) -> tuple[bool, str]:
  """Returns whether a kernel's tensor has its inputs first, and the layout of its outputs alone.

  Those of `D (3 H K) -> 3 D H K` are `(3 H K) -> 3 H K`. The kernel's first axis, not a number, is one of its inputs.
  """
  tensor, kernel = layout.split(" -> ")
  groups, axes = re.findall(r"\([^)]*\)|\S+", tensor), kernel.split()
  first = next(axis for axis in axes if not axis.isdigit())
  inputs = next(group for group in groups if first in group.strip("()").split())
  outputs = " ".join(group for group in groups if group != inputs)
  kept = " ".join(axis for axis in axes if axis not in inputs.strip("()").split())
  return groups[0] == inputs, f"{outputs} -> {kept}"


class AdapterFolder(HuggingFaceFolder):
  """A folder with adapter_config.json and adapter_model.safetensors, seen as the model that it makes of its base.

  Args:
    base: the folder of the base; default the one that the adapter names.
  """

  def __init__(self, path: epath.PathLike, step: Step = None, base: epath.PathLike | None = None):
    refuse_step(path, step)
    self.folder = epath.Path(path)
    self._adapter = read_adapter(self.folder / CONFIG)
    self._base = self._find(base)
    self.path = transformer_folder(self._base)

  def _find(self, given: epath.PathLike | None) -> epath.Path:
    """Returns the folder of the base, by its path from here or from the adapter."""
    name = os.fspath(given) if given is not None else self._adapter.base
    places = [] if not name or "://" in name else [find(name)]
    places += [self.folder / place for place in places if given is None]
    for place in places:
      if place.is_dir() and place != self.folder:
        if isinstance(saved := storage.open(place), HuggingFaceFolder) and type(saved) is HuggingFaceFolder:
          return saved.folder
        raise UserError(f"{place} is the base of an adapter, and not a Hugging Face folder; convert it to one first")
    what = f"no folder {one_line(repr(name), 100)}, the base of this adapter" if name else "no base"
    raise UserError(
      f"{self.folder}: there is {what}; give it: lmjax convert --input {self.folder} --base FOLDER --output MERGED, or "
      f"change base_model_name_or_path in {CONFIG}"
    )

  @functools.cached_property
  def _file(self) -> AdapterTensors:
    return AdapterTensors(self.folder)

  @functools.cached_property
  def _tensors(self) -> Any:
    return Merged(open_tensors(self.path), self._adapter, self._file, load(self.path), self.folder)

  @functools.cached_property
  def _loaded(self) -> Loaded:
    with trust.trusting(*self.trusted):
      base = load(self.path)
      tokenizer: Any = load_tokenizer(self.folder, base.model.config.vocabulary) or base.tokenizer
    settings = base.settings
    if head := TASKS.get(self._adapter.task):
      settings = settings | {"architectures": [base.family.architecture([head])]}
    config = base.family.from_hf(Fields(settings, self.path / "config.json"))
    return assemble(self.folder, settings, base.family, config, self._tensors, tokenizer)

  @property
  def config(self) -> dict[str, Any]:
    return self._loaded.settings

  @functools.cached_property
  def leaves(self) -> dict[str, Leaf]:
    tensors = self._file
    leaves = (Leaf(name.replace(".", "/"), tensors.shape(name), tensors.dtype(name).name) for name in tensors)
    return {leaf.name: leaf for leaf in leaves}

  def read(self, name: str) -> np.ndarray:
    return np.asarray(self._file[name.replace("/", ".")])

  @contextlib.contextmanager
  def tokenizer_folder(self) -> Iterator[epath.Path]:
    has_own = any((self.folder / name).exists() for name in TOKENIZERS)
    yield self.folder if has_own else self._base

  def files(self) -> dict[str, epath.Path]:
    base = {f"base/{file.name}": file for file in (self.path / "config.json", *open_tensors(self.path).files)}
    return base | {file.name: file for file in (self.folder / CONFIG, *self._file.files)}
