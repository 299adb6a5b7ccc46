"""sentence-transformers folders: how the vectors of tokens become one vector of a sentence.

modules.json lists a Transformer, then a Pooling, then any of Dense, LayerNorm, Normalize and Dropout.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from etils import epath

from lmjax.storage.safetensors import Tensors
from lmjax.utils.errors import UserError, did_you_mean
from lmjax.utils.fields import LARGEST, Fields
from lmjax.utils.files import find, inside, read_json

# The library's names of poolings, in the order in which several are concatenated, and those of this package.
POOLINGS = {
  "cls": "first", "max": "max", "mean": "mean", "mean_sqrt_len_tokens": "mean_sqrt_length",
  "weightedmean": "weighted_mean", "lasttoken": "last",
}  # fmt: skip
# The keys of POOLINGS as older folders set them.
FLAGS = {
  "pooling_mode_cls_token": "cls", "pooling_mode_max_tokens": "max", "pooling_mode_mean_tokens": "mean",
  "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens", "pooling_mode_weightedmean_tokens": "weightedmean",
  "pooling_mode_lasttoken": "lasttoken",
}  # fmt: skip
ACTIVATIONS: dict[str, Callable[[Any], Any]] = {
  "Identity": lambda x: x, "Tanh": np.tanh, "ReLU": jax.nn.relu, "ReLU6": jax.nn.relu6, "Sigmoid": jax.nn.sigmoid,
  "GELU": lambda x: jax.nn.gelu(x, approximate=False), "SiLU": jax.nn.silu, "Mish": jax.nn.mish, "ELU": jax.nn.elu,
  "SELU": jax.nn.selu, "CELU": jax.nn.celu, "LeakyReLU": jax.nn.leaky_relu, "Softplus": jax.nn.softplus,
  "Softsign": jax.nn.soft_sign, "LogSigmoid": jax.nn.log_sigmoid, "Hardtanh": jax.nn.hard_tanh,
}  # fmt: skip
MODULES = ("Transformer", "Pooling", "Dense", "LayerNorm", "Normalize", "Dropout")
FAMILIES = ("bert", "roberta", "distilbert", "camembert", "albert", "xlm-roberta", "xlnet")
SETTINGS = tuple(f"sentence_{name}_config.json" for name in FAMILIES)  # of the Transformer module
PACKAGE = "sentence_transformers."
EPSILON = 1e-5  # of torch's LayerNorm


@dataclasses.dataclass(frozen=True, eq=False)
class Dense:
  """x -> activation(x kernel + bias), and plus x, or x residual, where the module has a residual connection."""

  kernel_DxE: np.ndarray
  bias_E: np.ndarray | None
  activation: Callable[[Any], Any]
  residual: np.ndarray | bool = False  # [D, E]; True is the identity

  def __call__(self, x_NxD: np.ndarray) -> np.ndarray:
    if x_NxD.shape[-1] != len(self.kernel_DxE):
      raise UserError(f"embed: the folder's Dense module takes {len(self.kernel_DxE)} values, not {x_NxD.shape[-1]}")
    y_NxE = x_NxD @ self.kernel_DxE
    y_NxE = np.asarray(self.activation(y_NxE if self.bias_E is None else y_NxE + self.bias_E[None]))
    if isinstance(self.residual, bool):
      return y_NxE + x_NxD if self.residual else y_NxE
    return y_NxE + x_NxD @ self.residual


@dataclasses.dataclass(frozen=True, eq=False)
class LayerNorm:
  """x -> (x - mean) / sqrt(variance + 1e-5) * scale + bias."""

  scale_D: np.ndarray
  bias_D: np.ndarray

  def __call__(self, x_NxD: np.ndarray) -> np.ndarray:
    centred = x_NxD - x_NxD.mean(axis=-1, keepdims=True)
    variance = np.square(centred).mean(axis=-1, keepdims=True)
    return centred / np.sqrt(variance + EPSILON) * self.scale_D[None] + self.bias_D[None]


def normalize(x_NxD: np.ndarray) -> np.ndarray:
  """Scales vectors to length 1."""
  return x_NxD / np.maximum(np.linalg.norm(x_NxD, axis=-1, keepdims=True), 1e-12)


@dataclasses.dataclass(frozen=True)
class Sentence:
  """What a folder says about vectors of sentences.

  poolings: concatenated. include_prompt: whether the tokens of the prompt are pooled. modules: functions of the pooled
  vectors [N, D], in their order. length: the longest input in tokens, None for the model's. lowercase: the text, before
  it is tokenized. prompts: strings that precede a sentence, by name; prompt: the name of the default one.
  """

  poolings: tuple[str, ...]
  include_prompt: bool = True
  modules: tuple[Callable[[np.ndarray], np.ndarray], ...] = ()
  length: int | None = None
  lowercase: bool = False
  prompts: dict[str, str] = dataclasses.field(default_factory=dict)
  prompt: str | None = None


def read_sentence(path: epath.PathLike) -> Sentence | None:
  """Returns what a folder says about vectors of sentences; None where it has no modules.json.

  Raises:
    UserError: a file cannot be read, or names a module, a pooling or a setting that is not supported.
  """
  folder = find(path)
  if not (folder / "modules.json").exists():
    return None
  kinds = [(kind, where) for kind, where in read_modules(folder) if kind != "Dropout"]
  if [kind for kind, _ in kinds[:2]] != ["Transformer", "Pooling"]:
    order = ", ".join(kind for kind, _ in kinds)
    raise UserError(f"{folder / 'modules.json'}: the modules {order} are not a Transformer and a Pooling, then others")
  readers: dict[str, Callable[[epath.Path], Any]] = {
    "Dense": _read_dense, "LayerNorm": _read_norm, "Normalize": _read_normalize,
  }  # fmt: skip
  for kind, _ in kinds[2:]:
    if kind not in readers:
      raise UserError(f"{folder / 'modules.json'}: a second {kind} module is not supported")
  poolings, include_prompt = _read_pooling(kinds[1][1])
  length, lowercase = _read_transformer(kinds[0][1])
  fields = _fields(folder, "config_sentence_transformers.json")
  prompts = fields.section("prompts", {})
  texts = {name: prompts.text(name, "") for name in prompts.values}
  default = fields.text("default_prompt_name", None)
  if default is not None and default not in texts:
    raise UserError(f"{fields.where}: the default prompt {default!r} is not one of its prompts")
  modules = tuple(readers[kind](where) for kind, where in kinds[2:])
  return Sentence(poolings, include_prompt, modules, length, lowercase, texts, default)


def read_modules(folder: epath.Path) -> list[tuple[str, epath.Path]]:
  """Returns the kind and the folder of each module of a modules.json, in their order.

  Raises:
    UserError: modules.json is corrupt, or names a module that is not supported or a folder outside.
  """
  file, modules = folder / "modules.json", []
  for number, module in enumerate(read_json(file, list)):
    if not isinstance(module, dict):
      raise UserError(f"{file}: module {number} must be an object")
    fields = Fields(module, file, f"{number}.")
    name, where = fields.text("type"), module.get("path", "")
    place = folder if where == "" else inside(folder, where)
    kind = name.rpartition(".")[2]
    if not name.startswith(PACKAGE) or kind not in MODULES:
      known = did_you_mean(kind, MODULES) if name.startswith(PACKAGE) else f"; supported: {', '.join(MODULES)}"
      raise UserError(f"{file}: the module {name!r} is not supported{known}")
    modules.append((kind, place))
  return modules


def transformer_folder(folder: epath.Path) -> epath.Path:
  """Returns the folder with the config.json and the tensors of a model: that of a Transformer module, or itself."""
  if (folder / "modules.json").exists() and not (folder / "model.safetensors").exists():
    for kind, where in read_modules(folder)[:1]:
      if kind == "Transformer" and (where / "config.json").exists():
        return where
  return folder


def _fields(folder: epath.Path, name: str = "config.json") -> Fields:
  file = folder / name
  return Fields(read_json(file) if file.exists() else {}, file)


def _finish(fields: Fields) -> None:
  """Refuses the keys that nobody took."""
  if unused := [key for key in fields.unused() if fields.values[key] not in (None, {}, [], "", False)]:
    raise UserError(f"{fields.where}: the setting {unused[0]!r} is not supported")


def _read_transformer(folder: epath.Path) -> tuple[int | None, bool]:
  """Returns the longest input in tokens and whether it is lowercased."""
  name = next((name for name in SETTINGS if (folder / name).exists()), SETTINGS[0])
  fields = _fields(folder, name)
  length, lowercase = fields.integer("max_seq_length", None, least=1), fields.boolean("do_lower_case", False)
  fields.text("transformer_task", "feature-extraction", ("feature-extraction",))
  fields.text("module_output_name", "token_embeddings", ("token_embeddings",))
  for key in ("modality_config", "unpad_inputs", "__version__"):
    fields.get(key, None)
  _finish(fields)
  if length is None:
    value = _fields(folder, "tokenizer_config.json").number("model_max_length", None, least=1)
    length = None if value is None or value > LARGEST else int(value)
  return length, lowercase


def _read_pooling(folder: epath.Path) -> tuple[tuple[str, ...], bool]:
  fields = _fields(folder)
  flags = [name for key, name in FLAGS.items() if fields.boolean(key, False)]
  mode = fields.get("pooling_mode", None)
  modes = flags or ["mean"] if mode is None else [mode] if isinstance(mode, str) else mode
  if not isinstance(modes, list) or not modes or not all(isinstance(m, str) for m in modes):
    raise fields.wrong("pooling_mode", "a pooling, or a list of them")
  for name in modes:
    if name not in POOLINGS:
      raise UserError(f"{fields.where}: the pooling {name!r} is not supported{did_you_mean(name, POOLINGS)}")
  for key in ("word_embedding_dimension", "embedding_dimension"):
    fields.integer(key, None)
  include_prompt = fields.boolean("include_prompt", True)
  _finish(fields)
  return tuple(POOLINGS[name] for name in modes), include_prompt


def _names(fields: Fields) -> None:
  """Checks that a module reads and writes the vector of the sentence."""
  for key in ("module_input_name", "module_output_name"):
    fields.text(key, "sentence_embedding", ("sentence_embedding",))


def _read_dense(folder: epath.Path) -> Dense:
  fields = _fields(folder)
  inputs, outputs = fields.integer("in_features", least=1), fields.integer("out_features", least=1)
  bias, residual = fields.boolean("bias", True), fields.boolean("use_residual", False)
  name = fields.text("activation_function", None if "activation_function" in fields.values else "torch.nn.Tanh")
  _names(fields)
  _finish(fields)
  kind = "Identity" if name is None else name.rpartition(".")[2]
  if kind not in ACTIVATIONS or (name is not None and not name.startswith("torch.nn.")):
    raise UserError(
      f"{fields.where}: the activation_function {name!r} is not supported{did_you_mean(kind, ACTIVATIONS)}"
    )
  tensors = {"linear.weight": (outputs, inputs)} | ({"linear.bias": (outputs,)} if bias else {})
  if residual and inputs != outputs:
    tensors["residual.weight"] = (outputs, inputs)
  arrays = _read_tensors(folder, tensors)
  skip = arrays["residual.weight"].T if "residual.weight" in arrays else residual
  return Dense(arrays["linear.weight"].T, arrays.get("linear.bias"), ACTIVATIONS[kind], skip)


def _read_norm(folder: epath.Path) -> LayerNorm:
  fields = _fields(folder)
  shape = (fields.integer("dimension", least=1),)
  _finish(fields)
  arrays = _read_tensors(folder, {"norm.weight": shape, "norm.bias": shape})
  return LayerNorm(arrays["norm.weight"], arrays["norm.bias"])


def _read_normalize(folder: epath.Path) -> Callable[[np.ndarray], np.ndarray]:
  fields = _fields(folder)
  _names(fields)
  _finish(fields)
  return normalize


def _read_tensors(folder: epath.Path, shapes: dict[str, tuple[int, ...]]) -> dict[str, np.ndarray]:
  """Returns the tensors of a module as float32.

  Raises:
    UserError: one is missing, unknown or of another shape.
  """
  tensors = Tensors(folder)
  for name in {*shapes, *tensors}:
    if name not in tensors:
      raise UserError(f"{folder}: the tensor {name} is missing")
    if shapes.get(name) != tensors.shape(name):
      wanted = shapes.get(name, "a tensor of the module")
      raise UserError(f"{folder}: {name} of shape {tensors.shape(name)} is not {wanted}")
  return {name: np.asarray(tensors[name], np.float32) for name in shapes}
