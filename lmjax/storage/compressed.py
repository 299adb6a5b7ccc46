"""Compressed models: a folder with quantized and pruned parameters, and what the model was before.

config.json             `compression`: what was done, to which model; and the run's config (`run`), or the model,
                        its task and its length
compressed.safetensors  a parameter is one tensor, or NAME/values, /scale, /offset and /factor of a quantized one (and
                        /activations, if what it reads is rounded, too), or
                        NAME/nonzero and NAME/mask (a bit for each value) of a pruned one
tokenizer/, source/     the tokenizer; of a Hugging Face folder or a GGUF file, its other files
"""

import copy
import dataclasses
import functools
import json
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
from etils import epath
from flax import linen as nn
from flax import traverse_util

from lmjax import config as configs
from lmjax import experiment as experiments
from lmjax import sections
from lmjax.compression.lora import first_output
from lmjax.compression.quantize import QTensor, names_on
from lmjax.data.tokenizers import registry
from lmjax.data.tokenizers.base import Tokenizer
from lmjax.data.tokenizers.settings import Settings
from lmjax.layers import leaves as leaf_types
from lmjax.layers.leaves import Parameter
from lmjax.logs import console
from lmjax.parallel.sharding import Layout, LogicallyPartitioned, is_partitioned
from lmjax.state import named_parameters
from lmjax.storage.base import LazyArray, Leaf, LoadedModel, SavedModel, Step, refuse_step, replace_dtype
from lmjax.storage.bilm import MAX_WORDS, BilmFolder
from lmjax.storage.huggingface.companions import TOKENIZER, companions
from lmjax.storage.huggingface.folder import HuggingFaceFolder
from lmjax.storage.huggingface.load import add_generation_settings, load_tokenizer
from lmjax.storage.placement import layout_of
from lmjax.storage.run import Deferred, RunFolder, build
from lmjax.storage.safetensors import Tensors, write
from lmjax.tasks.base import Base, Task
from lmjax.utils import checksums, files, pytree, trust
from lmjax.utils.errors import UserError
from lmjax.utils.fields import Fields
from lmjax.utils.pytree import Tree

WEIGHTS = "compressed.safetensors"
WHOLE, BITS = 0.1, 8  # a parameter with a smaller fraction of zeros is stored whole; values whose mask fills a byte


@dataclasses.dataclass(frozen=True)
class StoredLeaf(Leaf):
  """A part of a parameter whose values share bytes."""

  size: int = 0

  @property
  def bytes(self) -> int:
    return self.size


class CompressedFolder(SavedModel):
  """A folder that `lmjax compress` has written."""

  def __init__(self, path: epath.PathLike, step: Step = None):
    refuse_step(path, step)
    self.path = epath.Path(path)
    source = self.path / "source"
    self.folder = source if source.exists() else self.path  # with the files of sentence-transformers

  @functools.cached_property
  def _tensors(self) -> Tensors:
    return Tensors(self.path, WEIGHTS)

  @functools.cached_property
  def config(self) -> dict[str, Any]:
    file = self.path / "config.json"
    with trust.trusting(*self.trusted):
      settings = trust.mark(files.read_json(file), file)
    if not isinstance(settings.get("compression"), dict):
      raise UserError(f"{file} has no section `compression`, which that of a compressed model has")
    return settings

  @functools.cached_property
  def _run(self) -> dict[str, Any] | None:
    """The config of the run that was compressed; None for another model."""
    if "run" not in self.config:
      return None
    return sections.upgrade(Fields(self.config, self.path / "config.json").section("run").values, str(self.path))

  def _build(self, settings: dict[str, Any]) -> experiments.Experiment:
    with trust.trusting(*self.trusted):
      return build(copy.deepcopy(settings) | {"mesh": {}}, self.path)

  @functools.cached_property
  def task(self) -> Task:
    if self._run is not None:
      return self._build(self._run).task
    fields = Fields(self.config, self.path / "config.json")
    with trust.trusting(*self.trusted):
      model = sections.build(fields.section("model").values, "model", None, nn.Module)
      task: Task = sections.build(fields.section("task").values, "task", None, Base, model=model)
    return task

  @functools.cached_property
  def tokenizer(self) -> Tokenizer | None:
    if (self.path / "tokenizer").exists():
      return registry.load(self.path / "tokenizer")
    if self.folder == self.path:
      return None
    config = self.task.model.config
    tokenizer = load_tokenizer(self.folder, config.vocabulary)
    if tokenizer:
      add_generation_settings(tokenizer, Settings(self.folder), config)
    return tokenizer

  @functools.cached_property
  def named(self) -> Tree:
    named = pytree.named_leaves(named_parameters(self.task, 1, 1), is_leaf=is_partitioned)
    stored = {name for tensor in self._tensors for name in (tensor, tensor.rpartition("/")[0])}
    kept = {name: box for name, box in named.items() if name in stored or not name.startswith("model/unembed")}
    return {"model": {}, "heads": {}} | traverse_util.unflatten_dict(kept, sep="/")

  @functools.cached_property
  def _boxes(self) -> dict[str, LogicallyPartitioned]:
    return pytree.named_leaves(self.named, is_leaf=is_partitioned)

  def _tensor(self, name: str, dtypes: str, shape: tuple[int, ...] | None = None) -> np.ndarray:
    """Returns a tensor, of a dtype whose kind is among `dtypes`, and of a shape.

    Raises:
      UserError: there is no such tensor.
    """
    where = self.path / WEIGHTS
    if name not in self._tensors:
      raise UserError(f"{where} does not have {name}, which the model of config.json has")
    array = self._tensors[name]
    if array.dtype.name not in dtypes.split() or (shape is not None and array.shape != shape):
      raise UserError(f"{where} has {name} as {array.dtype.name} {list(array.shape)}, not {dtypes} {list(shape or ())}")
    return array

  def parameter(self, name: str) -> np.ndarray | QTensor:
    """Returns a parameter as it is stored, with numpy arrays.

    Raises:
      UserError: the file and the model of config.json contradict each other.
    """
    shape = self._boxes[name].value.shape
    if f"{name}/values" in self._tensors:
      values = self._tensor(f"{name}/values", "int8 uint8 float8_e4m3fn float8_e5m2")
      values = unpack(values, shape) if values.dtype == np.uint8 and values.shape == _packed(shape) else values
      scale = self._tensor(f"{name}/scale", "float32")
      blocks = len(scale.shape) == len(shape) and all(c and n % c == 0 for n, c in zip(shape, scale.shape, strict=True))
      if values.shape != shape or not blocks:
        stored = f"{list(values.shape)} with scales {list(scale.shape)}"
        raise UserError(f"{self.path / WEIGHTS} has {name} as {stored}, not {list(shape)}")
      offset = self._tensor(f"{name}/offset", "float32", scale.shape) if f"{name}/offset" in self._tensors else None
      wide = tuple(n if i < first_output(self._boxes[name].names) else 1 for i, n in enumerate(shape))
      factor = self._tensor(f"{name}/factor", "float32", wide) if f"{name}/factor" in self._tensors else None
      return QTensor(values, scale, offset, factor, activations=f"{name}/activations" in self._tensors)
    if f"{name}/mask" not in self._tensors:
      return self._tensor(name, "float32 bfloat16", shape)
    size = int(np.prod(shape, dtype=np.int64))
    bits = self._tensor(f"{name}/mask", "uint8", (-(-size // BITS),))
    mask = np.unpackbits(bits, count=size).astype(bool)
    array = np.zeros(size, np.float32)
    array[mask] = self._tensor(f"{name}/nonzero", "float32", (int(mask.sum()),))
    return array.reshape(shape)

  @property
  def quantized(self) -> bool:
    """Whether there is a quantized parameter."""
    return any(name.endswith("/values") for name in self._tensors)

  @functools.cached_property
  def leaves(self) -> dict[str, Leaf]:
    leaves: dict[str, Leaf] = {}
    for name in self._tensors:
      shape, dtype = self._tensors.shape(name), self._tensors.dtype(name)
      owner, _, part = name.rpartition("/")
      box = self._boxes.get(name) or self._boxes.get(owner)
      size = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
      is_int4 = part == "values" and dtype == np.uint8
      shape, type_name = (box.value.shape, "int4") if is_int4 and box else (shape, dtype.name)
      axes = ", ".join(map(str, box.names)) if box and len(box.names) == len(shape) else ""
      leaves[name] = StoredLeaf(name, shape, type_name, axes=axes, size=size)
    return leaves

  def read(self, name: str) -> np.ndarray:
    if self.leaves[name].dtype != "int4":
      return np.asarray(self._tensors[name])
    values = self.parameter(name.rpartition("/")[0])
    assert isinstance(values, QTensor)
    return np.asarray(values.values)

  def parameters(self) -> dict[str, LazyArray]:
    def dense(name: str) -> np.ndarray:
      return np.asarray(leaf_types.dense(self.parameter(name), jnp.float32))

    return {
      name: Deferred(box.value.shape, np.dtype(np.float32), box.rows, functools.partial(dense, name))
      for name, box in self._boxes.items()
    }

  def leaf_params(self, layout: Layout) -> Tree:
    """Returns the parameters as they are stored, leaf types included, on their shardings."""

    def leaf(name: str, box: LogicallyPartitioned) -> Parameter:
      value = self.parameter(name)
      names = names_on(value, box.names, layout) if isinstance(value, QTensor) else box.names
      for axis, kept in zip(box.names, names, strict=True):
        if axis != kept and jax.process_index() == 0:
          console.print(f"{name} is replicated along {axis!r}, whose parts would split a group of its scales")
      return jax.tree.map(lambda part: jax.device_put(part, layout.sharding(*names, shape=part.shape)), value)

    return pytree.map_named(leaf, self.named, is_leaf=is_partitioned)

  def load(self, dtype: str | None = None, overrides: dict[str, str] | None = None) -> LoadedModel:
    if self._run is not None:
      settings = copy.deepcopy(self._run)
      for key, text in (overrides or {}).items():
        configs.override(settings, key, text)
      if dtype:
        settings["model"]["dtype"] = dtype
      run = self._build(settings)
      params = self.leaf_params(run.layout)
      return LoadedModel(run.task, run.tokenizer, run.data.length, run.layout, params, 0, settings, run)
    if self.tokenizer is None:
      raise UserError(f"{self.path} has no tokenizer, as the model that was compressed had none")
    layout = layout_of(overrides)
    task = replace_dtype(self.task, dtype) if dtype else self.task
    length = Fields(self.config, self.path / "config.json").integer("length", least=1)
    return LoadedModel(task, self.tokenizer, length, layout, self.leaf_params(layout), 0, self.config)

  def files(self) -> dict[str, epath.Path]:
    return {name: self.path / name for name in ("config.json", WEIGHTS)}


def pack(values: np.ndarray) -> np.ndarray:
  """Returns int4 values, two in each byte, the first in the lower half."""
  flat = np.asarray(values).astype(np.int8).reshape(-1).view(np.uint8) & 15
  flat = np.pad(flat, (0, flat.size % 2))
  return flat[::2] | flat[1::2] << 4


def unpack(packed: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
  """Returns the int4 values of a shape that `pack` has made."""
  flat = np.stack([packed & 15, packed >> 4], axis=-1).reshape(-1)[: int(np.prod(shape, dtype=np.int64))]
  return ((flat ^ 8).astype(np.int8) - 8).reshape(shape).astype(ml_dtypes.int4)


def _packed(shape: tuple[int, ...]) -> tuple[int, ...]:
  return (-(-int(np.prod(shape, dtype=np.int64)) // 2),)


def tensors_of(name: str, value: Parameter) -> dict[str, np.ndarray]:
  """Returns the tensors that a parameter is stored as."""
  if isinstance(value, QTensor):
    values = pack(value.values) if value.values.dtype == jnp.int4 else np.asarray(value.values)
    parts = {"values": values, "scale": np.asarray(value.scale)}
    rounded = np.ones(1, np.uint8) if value.activations else None
    others = {"offset": value.offset, "factor": value.factor, "activations": rounded}
    parts |= {part: np.asarray(array) for part, array in others.items() if array is not None}
    return {f"{name}/{part}": array for part, array in parts.items()}
  array = np.asarray(value)
  mask = array.reshape(-1) != 0
  if mask.mean() > 1 - WHOLE:
    return {name: array}
  return {f"{name}/mask": np.packbits(mask), f"{name}/nonzero": array.reshape(-1)[mask]}


def describe(value: Any) -> Any:
  """Returns a task, or what it holds, as a section of a config: plain data with the names of classes."""
  if dataclasses.is_dataclass(value):
    left = ("parent", "name") if isinstance(value, nn.Module) else ("model",)
    plain = {f.name: describe(getattr(value, f.name)) for f in dataclasses.fields(value) if f.name not in left}
    return {"kind": f"{type(value).__module__}:{type(value).__qualname__}"} | plain
  if isinstance(value, dict):
    return {key: describe(item) for key, item in value.items()}
  if callable(value):
    return f"{value.__module__}:{value.__qualname__}"
  return [describe(item) for item in value] if isinstance(value, list | tuple) else value


def save(
  folder: epath.PathLike, source: SavedModel, params: dict[str, Parameter], record: dict[str, Any],
  changes: dict[str, Any], tokenizer: Tokenizer | None = None,
) -> None:  # fmt: skip
  """Writes a compressed model; the folder appears when it is complete.

  Args:
    source: the model that was compressed.
    params: by path names.
    record: plain data for the section `compression` of config.json.
    changes: settings of the model that differ from the source's.
    tokenizer: in place of the source's.

  Raises:
    UserError: the folder is there already, or cannot be written.
  """
  refuse_existing(folder)
  settings: dict[str, Any] = {"format": sections.FORMAT, "compression": record}
  run = source.config.get("run") if isinstance(source, CompressedFolder) else None
  run = source.config if isinstance(source, RunFolder) else run
  if run:
    settings["run"] = {"format": sections.FORMAT} | run | {"transform": sections.KEYS["transform"], "start": {}}
    settings["run"]["model"] = run["model"] | changes
  else:
    model, length = source.task.model, source.task.model.config.length
    config = describe(model.config) | changes | {"kind": f"{type(model).__module__}:{type(model).__qualname__}"}
    length = (
      source.config["length"]
      if isinstance(source, CompressedFolder)
      else MAX_WORDS
      if isinstance(source, BilmFolder)
      else length
    )
    settings |= {"model": config, "task": describe(source.task), "length": length}
  with files.new_folder(folder) as part:
    for name, content in _companions(source, tokenizer is None).items():
      (part / name).parent.mkdir(parents=True, exist_ok=True)
      files.write(part / name, content)
    own = tokenizer or (None if (part / "source").exists() else source.tokenizer)
    if own is not None:
      own.save(part / "tokenizer")
    tensors = {name: array for path, value in params.items() for name, array in tensors_of(path, value).items()}
    write(part / WEIGHTS, {name: (array.dtype, array.shape) for name, array in tensors.items()}, tensors.values())
    files.write(part / "config.json", json.dumps(settings, indent=2))


def _companions(source: SavedModel, tokenizer: bool) -> dict[str, str | bytes]:
  """Returns what the files of a Hugging Face folder besides its weights contain, by their names in the copy.

  Args:
    tokenizer: whether the files of its tokenizer are among them.
  """
  if isinstance(source, CompressedFolder):
    kept = ("source/", "tokenizer/")[: 1 + ((source.path / "source").exists() and tokenizer)]
    walked = {name: file for name, file in checksums.walk(source.path).items() if name.startswith(kept)}
    return {name: files.read_bytes(file) for name, file in walked.items() if tokenizer or not _is_tokenizer(name)}
  if not isinstance(source, HuggingFaceFolder):
    return {}
  with source.tokenizer_folder() as folder:
    beside = companions(folder, tokenizer).items()
    contents = {n: f if isinstance(f, str) else files.read_bytes(f) for n, f in beside}
  contents |= {"config.json": json.dumps(source.config, indent=2)}
  return {f"source/{name}": content for name, content in contents.items() if tokenizer or not _is_tokenizer(name)}


def _is_tokenizer(name: str) -> bool:
  """Returns whether a file of a Hugging Face folder is one of the tokenizer, or has ids of its tokens."""
  file = name.removeprefix("source/")
  return file.startswith((*TOKENIZER, "generation_config")) or file.endswith((".model", ".spm", ".tiktoken"))


def refuse_existing(folder: epath.PathLike) -> None:
  """Raises UserError where there is something already."""
  if epath.Path(folder).expanduser().exists():
    raise UserError(f"{folder} is there already; name another --output")
