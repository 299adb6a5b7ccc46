"""Writes what a LoRA run trained as an adapter in PEFT's format."""

import collections
import json
import math
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
from etils import epath
from flax import linen as nn
from flax import traverse_util

from lmjax.compression.lora import LoRA
from lmjax.models.base import GENERATES
from lmjax.optim import averaged
from lmjax.storage import base as storage
from lmjax.storage import safetensors
from lmjax.storage.huggingface.adapter import CONFIG, START, TASKS, WEIGHTS, split_layout, stores_inputs_first
from lmjax.storage.huggingface.families import FAMILIES, Family
from lmjax.storage.huggingface.folder import HuggingFaceFolder
from lmjax.storage.huggingface.load import axis_sizes, depth_of, read_config
from lmjax.storage.huggingface.save import bare, kind_of, tensors_of
from lmjax.storage.huggingface.weights import WeightMap, join, unembedding, unembedding_bias
from lmjax.storage.run import RunFolder
from lmjax.utils import files, pytree
from lmjax.utils.errors import UserError, one_line
from lmjax.utils.pytree import Tree

KINDS = {"decoder": "CAUSAL_LM", "encoder_decoder": "SEQ_2_SEQ_LM"}  # PEFT's task_type of models without a head


class Row(NamedTuple):
  """A row of the tables, with the names of its parameters in the tree, and of its module in PEFT."""

  weight: WeightMap
  paths: list[str]
  module: str  # with `{}` for the number of a layer

  @property
  def is_kernel(self) -> bool:
    return self.weight.lmjax.endswith(("kernel", "table"))

  @property
  def is_dense(self) -> bool:
    return self.weight.lmjax.endswith("kernel")


class Change(NamedTuple):
  """The factors of a module, {ending of the tensor's name: array} of a layer, and the rank and alpha of their scale."""

  row: Row
  rank: int
  alpha: float
  factors: Callable[[int | None], dict[str, np.ndarray]]


def save_adapter(folder: epath.PathLike, source: storage.SavedModel, base_folder: epath.PathLike | None = None) -> None:
  """Writes the factors of a LoRA run, and what else it trained, as a folder that PEFT opens.

  Args:
    base_folder: the Hugging Face folder of the base; default the one that the run started from.

  Raises:
    UserError: the source is not such a run, what it trained has no equivalent in PEFT, or the folder is not empty.
  """
  if not isinstance(source, RunFolder) or not isinstance(source.experiment.transform, LoRA):
    raise UserError(
      f"convert: {source.path} is not a run with transform.kind lmjax.compression.lora:LoRA, so it has no adapter"
    )
  run, state = source.state()
  base = _base_of(run.start.path if base_folder is None else base_folder)
  trained = pytree.named_leaves(averaged(state.opt_state, state.params))
  write_adapter(folder, base, run.task.model, source.parameters(), trained, run.transform)


def write_adapter(
  folder: epath.PathLike, base: epath.PathLike, model: nn.Module, parameters: Mapping[str, Any],
  trained: Mapping[str, Any], lora: LoRA,
) -> None:  # fmt: skip
  """Writes trained parameters as a folder that PEFT opens; see `save_adapter`.

  Args:
    base: the folder that the adapter names as its base.
    parameters: of the merged model, by path names; read only where a module is saved whole.
    trained: {path name: array}, as LoRA.init returns them.
  """
  folder = files.expand(folder)
  if folder.exists() and any(folder.iterdir()):
    raise UserError(f"{folder} is not empty; name another folder")
  whole = {name: value for name, value in trained.items() if name in parameters}
  params = {"heads": {}} | traverse_util.unflatten_dict({**parameters, **whole}, sep="/")
  kind = read_config(base)[0]["model_type"]
  family, config, heads, ending = FAMILIES[kind_of(model, kind)], model.config, params["heads"], bare(model, params)
  if unknown := next((head for head in heads if head not in family.heads(config)), None):
    raise UserError(f"convert: the head {unknown!r} has no equivalent in {family.hf_prefix} models")
  rows = list(_rows(family, config, params, family.prefix_under(heads, ending)))
  shared = model.kind == "encoder_decoder" or (
    config.tie_embeddings and (model.kind in GENERATES or "masked_lm" in heads)
  )
  if shared and any(name.startswith("model/embed/table") for name in trained):
    raise UserError("convert: the run trained a table with several uses, of which PEFT changes one; write it merged")
  known = {path for row in rows for path in row.paths}
  for name in trained:
    if name not in known and re.sub(r"/[ab]$", "", name) not in known:
      raise UserError(f"convert: {name} has no tensor in {family.hf_prefix} models")
  changes = [change for row in rows if (change := _change(row, lora, trained, config))]
  modules = {module for row in rows if any(path in whole for path in row.paths) for module in _layers(row, config)}
  modules = {name for name in modules if not any(name.startswith(f"{other}.") for other in modules)}
  if both := sorted(modules & {module for change in changes for module in _layers(change.row, config)}):
    raise UserError(f"convert: {both[0]} was trained by factors and as a whole, which PEFT cannot; write it merged")

  tensors: dict[str, np.ndarray] = {}
  for change in changes:
    for layer, module in enumerate(_layers(change.row, config)):
      for part, array in change.factors(layer if change.row.weight.stacked else None).items():
        tensors[f"{START}{module}.{part}"] = np.ascontiguousarray(array, np.float32)
  for name, array in _whole(family, config, params, ending, modules):
    tensors[START + name] = np.ascontiguousarray(array, np.float32)
  task = next((task for task, head in TASKS.items() if head in heads), None)
  settings = {
    "peft_type": "LORA",
    "task_type": task or (None if heads or ending else KINDS.get(model.kind)),
    "base_model_name_or_path": str(base),
    "bias": "none",
    "fan_in_fan_out": any(stores_inputs_first(change.row.weight) for change in changes),
    "inference_mode": True,
    "lora_dropout": lora.dropout,
    "modules_to_save": sorted(modules) or None,
    "target_modules": _targets([change.row for change in changes], rows),
    "use_rslora": lora.rank_stabilized,
  } | _ranks(changes)
  with files.new_folder(folder) as part:
    shapes = {name: (array.dtype, array.shape) for name, array in tensors.items()}
    safetensors.write(part / WEIGHTS, shapes, tensors.values())
    files.write(part / CONFIG, json.dumps(settings, indent=2) + "\n")


def _whole(
  family: Family, config: Any, params: Tree, ending: str, modules: set[str]
) -> Iterator[tuple[str, np.ndarray]]:
  """Yields the tensors of modules that are saved whole, shared ones under each of their names."""
  makers = {name: make for name, _, make in tensors_of(family, config, params, ending)} if modules else {}
  prefix, heads = family.prefix_under(params["heads"], ending), family.heads(config)
  for weight in (*family.weights(config), *heads.get("masked_lm", ())):
    name = {"embed/table": family.unembed, "masked_lm/bias": family.unembed_bias}.get(weight.lmjax)
    stored = weight.hf if weight.lmjax.startswith("masked_lm") else prefix + weight.hf
    if name and stored in makers:
      makers.setdefault(name, makers[stored])
  for name, make in makers.items():
    if any(name.startswith(f"{module}.") for module in modules):
      yield name, make()


def _base_of(path: epath.PathLike) -> epath.Path:
  """Returns the absolute path of the Hugging Face folder of the base."""
  what = f"it started from {one_line(str(path))}" if path else "it started from scratch"
  saved = storage.open(path) if path else None
  if type(saved) is not HuggingFaceFolder:
    raise UserError(
      f"convert: the base of an adapter is a Hugging Face folder, and the run has none: {what}; write the base with "
      "lmjax convert and give it with --base"
    )
  return files.find(path).absolute()


def _rows(family: Family, config: Any, params: Tree, prefix: str) -> Iterator[Row]:
  """Yields the rows of the tables of a model and its heads, without those of experts."""
  parts = [("model", weight, prefix) for weight in family.weights(config) if not weight.of_experts]
  scores = (*unembedding(family.unembed), *unembedding_bias(family.unembed, config))
  parts += [("model", weight, "") for weight in scores if weight.lmjax.split("/")[0] in params["model"]]
  parts += [("heads", weight, "") for head in params["heads"] for weight in family.heads(config)[head]]
  for part, weight, start in parts:
    yield Row(weight, [f"{part}/{path}" for path in weight.paths], start + weight.hf.rpartition(".")[0])


def _layers(row: Row, config: Any) -> list[str]:
  """Returns the names of a row's modules, one for each layer."""
  return [row.module.format(i) for i in range(depth_of(config, row.weight) if row.weight.stacked else 1)]


def _change(row: Row, lora: LoRA, trained: Mapping[str, Any], config: Any) -> Change | None:
  """Returns the factors of a row's module; None where it has none.

  Where a tensor holds several kernels side by side, B is a block matrix, and the rank is their sum.
  """
  paths = [path for path in row.paths if f"{path}/a" in trained]
  if not paths or not row.is_kernel:
    return None
  scale = lora.scale_of(paths[0])
  rank = sum(lora.rank_of(path) for path in paths)

  def factors(layer: int | None) -> dict[str, np.ndarray]:
    low, high = [], []
    for path in paths:
      a, b = (np.asarray(trained[f"{path}/{part}"], np.float32) for part in "ab")
      a, b = (a, b) if layer is None else (a[layer], b[layer])
      low.append(a.reshape(-1, a.shape[-1]))
      b = b * np.float32(lora.scale_of(path) / scale)
      high += [_outputs(row, path, column, config) for column in b] if row.is_dense else list(b)
    a, b = np.concatenate(low, 1), np.stack(high, 1)  # [inputs, R], [outputs, R]
    if row.is_dense:
      return {"lora_A.weight": a.T, "lora_B.weight": b}
    a = a[: config.vocabulary] if row.weight.layout.startswith("V") else a
    if row.weight.lmjax.startswith("unembed"):  # a linear layer, whose outputs are the rows
      return {"lora_A.weight": b.T, "lora_B.weight": a}
    return {"lora_embedding_A": a.T, "lora_embedding_B": b}

  return Change(row, rank, scale * (math.sqrt(rank) if lora.rank_stabilized else rank), factors)


def _outputs(row: Row, path: str, column: np.ndarray, config: Any) -> np.ndarray:
  """Returns a column of one kernel's factor as the tensor has its outputs, those of the other kernels being zero."""
  layout = " | ".join(split_layout(part)[1] for part in row.weight.layout.split(" | "))
  sizes = axis_sizes(config) | {"Y": column.shape[-1]}
  parts = layout.split(" | ")
  axes = [part.split(" -> ")[1].split() for part in (parts if len(parts) > 1 else parts * len(row.paths))]
  axes = [[axis for axis in names if not axis.isdigit() or len(row.paths) == 1] for names in axes]
  zeros = [np.zeros([int(a) if a.isdigit() else sizes[a] for a in names], np.float32) for names in axes]
  zeros[row.paths.index(path)] = column
  return join(zeros, layout, sizes)


def _ranks(changes: list[Change]) -> dict[str, Any]:
  """Returns the rank and alpha that most modules have, and patterns for the others."""
  number = lambda value: int(value) if value == int(value) else value  # noqa: E731
  rank = collections.Counter(change.rank for change in changes).most_common(1)[0][0]
  alpha = collections.Counter(change.alpha for change in changes).most_common(1)[0][0]
  return {
    "r": rank,
    "lora_alpha": number(alpha),
    "rank_pattern": {_pattern(c.row.module): c.rank for c in changes if c.rank != rank},
    "alpha_pattern": {_pattern(c.row.module): number(c.alpha) for c in changes if c.alpha != alpha},
  }


def _pattern(module: str) -> str:
  return r"\d+".join(map(re.escape, module.split("{}")))


def _targets(targets: list[Row], rows: list[Row]) -> list[str] | str:
  """Returns the shortest ends of names that only targets have, or a regular expression where there are none."""
  wanted, every = {row.module for row in targets}, {row.module for row in rows if row.is_kernel}
  endings = set()
  for module in wanted:
    words = module.rpartition("{}.")[2].split(".")
    known = [".".join(words[i:]) for i in reversed(range(len(words)))]
    only = (end for end in known if {m for m in every if f".{m}".endswith(f".{end}")} <= wanted)
    endings.add(next(only, ""))
  if "" in endings:
    return r"(.*\.)?(" + "|".join(sorted(map(_pattern, wanted))) + ")"
  return sorted(endings)
