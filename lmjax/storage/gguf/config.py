"""What the metadata of a GGUF file says about a model: the config, and how its tensors are named and arranged."""

import dataclasses
import math
from typing import Any

import numpy as np

from lmjax.layers.positions import Rotary
from lmjax.models import decoder
from lmjax.storage.gguf.file import GGUF, Deferred, package
from lmjax.storage.huggingface.families import FAMILIES, Family, note
from lmjax.storage.huggingface.weights import unembedding
from lmjax.storage.lazy import mapped
from lmjax.utils.errors import UserError
from lmjax.utils.fields import Fields

ROPE_FREQS = "rope_freqs.weight"  # what the frequencies of rotary positions are divided by
KEYS = dict(
  length="context_length", width="embedding_length", depth="block_count", heads="attention.head_count",
  mlp="feed_forward_length",
)  # fmt: skip
# Fields of the config that metadata or tensors state, and those that change no value.
STATED = {*KEYS, "vocabulary", "kv_heads", "head_size", "epsilon", "qkv_bias", "attention_bias", "mlp_bias",
        "tie_embeddings", "rotary", "window", "window_layers", "dropout", "dtype", "scan", "remat"}  # fmt: skip
# Keys that change what is computed, with the values that change nothing; any other value is refused.
UNSUPPORTED: dict[str, tuple[Any, ...]] = {
  "expert_count": (0,), "expert_used_count": (0,), "attention.causal": (True,), "attention.clamp_kqv": (0.0,),
  "attention.max_alibi_bias": (0.0,), "attention.scale": (0.0,), "embedding_scale": (0.0, 1.0),
  "residual_scale": (0.0, 1.0), "logit_scale": (0.0, 1.0), "use_parallel_residual": (False,),
  "rope.scaling.attn_factor": (0.0, 1.0), "rope.scaling.alpha": (0.0,), "pooling_type": (0,),
  "attn_logit_softcapping": (0.0,), "final_logit_softcapping": (0.0,), "nextn_predict_layers": (0,),
}  # fmt: skip


# Keys that change nothing, those of YaRN without YaRN included; any other unknown key is named in a line.
IRRELEVANT = ("vocab_size", "tensor_data_layout", "rope.scaling.finetuned", "rope.scaling.original_context_length",
              "rope.scaling.yarn_log_multiplier", "rope.scaling.yarn_ext_factor", "rope.scaling.yarn_attn_factor",
              "rope.scaling.yarn_beta_fast", "rope.scaling.yarn_beta_slow")  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Architecture:
  """One `general.architecture` of GGUF.

  name: in the file. family: the `model_type` of Hugging Face whose tables describe its tensors. shape: the fields of
  the config that all its models share. epsilon: the key of the norms' epsilon.
  permuted: tensors whose rows llama.cpp has in another order: the two halves that rotary positions turn against each
  other are interleaved. transposed: tensors that Hugging Face stores as inputs x outputs.
  """

  name: str
  family: str
  shape: dict[str, Any]
  epsilon: str = "attention.layer_norm_rms_epsilon"
  permuted: tuple[str, ...] = ()
  transposed: tuple[str, ...] = ()


_LLAMA = dict(activation="silu", gated_mlp=True, norm="rms", bias=False)
ARCHITECTURES = {
  architecture.name: architecture
  for architecture in (
    Architecture(
      "llama", "llama", _LLAMA, permuted=(".attn_q.weight", ".attn_k.weight", ".attn_q.bias", ".attn_k.bias"),
    ),
    Architecture("qwen2", "qwen2", _LLAMA),
    Architecture(
      "gpt2", "gpt2", dict(activation="gelu_tanh"), "attention.layer_norm_epsilon",
      transposed=(".attn_qkv.weight", ".attn_output.weight", ".ffn_up.weight", ".ffn_down.weight"),
    ),
  )
}  # fmt: skip


def read_architecture(gguf: GGUF) -> Architecture:
  """Returns the architecture of a file.

  Raises:
    UserError: lmjax does not have it, or the file holds no model.
  """
  fields = Fields(gguf.metadata, gguf.path)
  kind = fields.text("general.type", "model")
  if kind != "model":
    raise UserError(f"{gguf.path} holds no model, but a file of the type {kind!r}")
  name = fields.text("general.architecture")
  if name not in ARCHITECTURES:
    raise UserError(f"{gguf.path}: the architecture {name!r} is not supported; known: {', '.join(ARCHITECTURES)}")
  return ARCHITECTURES[name]


def read_config(gguf: GGUF, architecture: Architecture) -> decoder.Config:
  """Returns the lmjax config of a file.

  Raises:
    UserError: a key is missing, or lmjax does not support its value.
  """
  prefix = architecture.name + "."
  values = {key.removeprefix(prefix): _plain(value) for key, value in gguf.metadata.items() if key.startswith(prefix)}
  fields = Fields(values, gguf.path, prefix)
  for key, harmless in UNSUPPORTED.items():
    if fields.get(key, harmless[0]) not in harmless:
      raise UserError(f"{gguf.path}: {prefix}{key} {values[key]!r} is not supported")
  shape = {field: fields.integer(key, least=1) for field, key in KEYS.items()}
  if shape["depth"] > len(gguf.tensors):
    raise UserError(
      f"{gguf.path}: {prefix}block_count is {shape['depth']:,}, but there are {len(gguf.tensors)} tensors"
    )
  table = gguf.tensors.get("token_embd.weight")
  if table is None:
    raise UserError(f"{gguf.path}: the tensor token_embd.weight is missing")
  heads, width = shape["heads"], shape["width"]
  size = fields.integer("attention.key_length", max(width // heads, 1), least=1)
  if fields.integer("attention.value_length", size) != size or fields.integer("rope.dimension_count", size) != size:
    raise UserError(f"{gguf.path}: keys, values and rotary positions must have the same size, {size} of each head")
  rotary = read_rotary(gguf, fields, size) if architecture.family != "gpt2" else None
  window = fields.integer("attention.sliding_window", 0)
  try:
    config = decoder.Config(
      **architecture.shape, **shape, vocabulary=table.shape[0], head_size=size, rotary=rotary,
      kv_heads=fields.integer("attention.head_count_kv", heads, least=1),
      epsilon=fields.number(architecture.epsilon, least=0.0), **_biases(architecture, gguf),
      tie_embeddings=_is_tied(gguf), window=window if 0 < window < shape["length"] else None,
    )  # fmt: skip
  except ValueError as error:
    raise UserError(f"{gguf.path} is not supported: {error}") from error
  fields.taken.update(("rope.freq_base", "rope.scaling.type", "rope.scaling.factor", *IRRELEVANT))
  if unknown := sorted(fields.unused()):
    note(f"{gguf.path}: {', '.join(prefix + key for key in unknown)} is not known and has no effect")
  return config


def _biases(architecture: Architecture, gguf: GGUF) -> dict[str, bool]:
  """Returns which biases a Llama has, by its tensors; a GPT-2 has all."""
  parts = dict(qkv_bias="attn_q", attention_bias="attn_output", mlp_bias="ffn_up")
  there = {field: f"blk.0.{part}.bias" in gguf.tensors for field, part in parts.items()}
  there["qkv_bias"] &= not there["attention_bias"]
  return there if "bias" in architecture.shape else {}


def write_config(architecture: Architecture, config: decoder.Config) -> dict[str, Any]:
  """Returns the metadata of a config, as `read_config` reads it.

  llama.cpp has no sliding window for these models: the context ends with it, so that nothing else is computed.

  Raises:
    UserError: llama.cpp has no such model: a field that the file cannot say is not what llama.cpp computes with.
  """
  fixed = {f.name: f.default for f in dataclasses.fields(config) if f.name not in STATED} | architecture.shape
  for field, value in fixed.items():
    if getattr(config, field) != value:
      raise UserError(
        f"llama.cpp computes {architecture.name} models with {field} {value!r}; this one has {getattr(config, field)!r}"
      )
  if config.rotary and config.rotary.scaling not in ("none", "linear", "llama3"):
    raise UserError(f"rotary positions scaled by {config.rotary.scaling!r} cannot be written as GGUF")
  if config.rotary and config.rotary.fraction != 1:
    raise UserError(f"rotary positions of {config.rotary.fraction:g} of each head cannot be written as GGUF")
  if config.window and config.window < config.length:
    note(
      f"llama.cpp has no sliding window for {architecture.name} models: the context ends with it, at {config.window}"
    )
  values: dict[str, Any] = {key: getattr(config, field) for field, key in KEYS.items()}
  values["context_length"] = min(config.length, config.window or config.length)
  values |= {"attention.head_count_kv": config.kv_heads, architecture.epsilon: float(config.epsilon)}
  values["vocab_size"] = config.vocabulary
  if config.rotary:
    values["rope.freq_base"] = float(config.rotary.base)
    values |= {f"attention.{key}_length": config.head_size for key in ("key", "value")}
    values["rope.dimension_count"] = config.head_size
    if config.rotary.scaling == "linear":
      values |= {"rope.scaling.type": "linear", "rope.scaling.factor": float(config.rotary.factor)}
  return {f"{architecture.name}.{key}": value for key, value in values.items()}


def _plain(value: Any) -> Any:
  """Returns a value for which a list of one value per layer, all of them equal, counts as that value."""
  items = value.tolist() if isinstance(value, np.ndarray) else value
  return items[0] if isinstance(items, list) and items and items.count(items[0]) == len(items) else items


def _is_tied(gguf: GGUF) -> bool:
  """Returns whether the embedding table also scores the next token; some files hold it twice."""
  table, output = gguf.tensors["token_embd.weight"], gguf.tensors.get("output.weight")
  if output is None or (output.kind, output.shape) != (table.kind, table.shape):
    return output is None
  raw = [mapped(tensor.file, np.uint8, tensor.offset, (tensor.bytes,)) for tensor in (table, output)]
  block = 2**24  # most tables differ in their first bytes
  return all(np.array_equal(raw[0][i : i + block], raw[1][i : i + block]) for i in range(0, table.bytes, block))


def read_rotary(gguf: GGUF, fields: Fields, head_size: int) -> Rotary:
  """Returns the rotary positions of a file.

  Raises:
    UserError: they are scaled in a way that lmjax does not have.
  """
  base = fields.number("rope.freq_base", 10_000.0, least=1.0)
  factor = fields.number("rope.scaling.factor", fields.number("rope.scale_linear", 0.0)) or 1.0
  kind = fields.text("rope.scaling.type", "linear", ("none", "linear"))
  scaled = kind == "linear" and factor != 1.0
  if ROPE_FREQS not in gguf.tensors:
    return Rotary(base, "linear", factor) if scaled else Rotary(base)
  factors = np.asarray(gguf.array(ROPE_FREQS))
  rotary = fit_rotary(base, factors) if factors.shape == (head_size // 2,) and not scaled else None
  if rotary is None:
    raise UserError(f"{gguf.path}: {ROPE_FREQS} is not a scaling of Llama 3, the only one that is supported with it")
  return rotary


def frequency_factors(rotary: Rotary, head_size: int) -> np.ndarray:
  """Returns what the frequencies of unscaled positions are divided by, float32 [head_size / 2]."""
  unscaled = dataclasses.replace(rotary, scaling="none").frequencies(head_size)
  return np.asarray(unscaled, np.float64) / np.asarray(rotary.frequencies(head_size), np.float64)


def fit_rotary(base: float, factors: np.ndarray) -> Rotary | None:
  """Returns the rotary positions whose frequencies are divided by some factors; None if there are none.

  With `t` the frequency in turns per token, Llama 3 keeps a share (original * t - low) / (high - low) of it, between 0
  and 1: a line through the shares that are neither. Of several lines, one with the usual low = 1 and high = 4 is taken.
  """
  count, largest = len(factors), float(factors.max())
  if not np.all(np.isfinite(factors)) or factors.min() < 1:
    return None
  if np.all(factors == factors[0]):
    return Rotary(base, "linear", largest) if largest != 1 else Rotary(base)
  factor = next(f for digits in (2, 4, 6, 9) if abs((f := round(largest, digits)) - largest) < 2e-6 * largest)
  turns = base ** (-np.arange(count) / count) / (2 * math.pi)
  kept = (1 / factors.astype(np.float64) - 1 / factor) / (1 - 1 / factor)
  between = np.flatnonzero((kept > 1e-6) & (kept < 1 - 1e-6))
  lines: list[tuple[float, float, float]] = []  # low, high, original
  if len(between) > 1:
    slope, start = np.polyfit(turns[between], kept[between], 1)
    low, high = (1.0, 1 - 1 / start) if start < 0 else (0.0, 1.0)
    original = slope * (high - low)
    rounded = [(round(low, digits), round(high, digits), float(round(original))) for digits in (0, 1, 2, 4)]
    lines = [*rounded, (low, high, original)]
  for high in (4.0, 8.0, 2.0, 1.5, 1.2, 1.1, 1.01):  # one share, or none, fits many lines
    at = int(between[0]) if len(between) else int(np.argmax(kept < 0.5))
    original = (float(kept[at]) * (high - 1) + 1) / float(turns[at]) * (1 if len(between) else 1 - 1e-6)
    lines += [(1.0, high, float(round(original))), (1.0, high, original)]
  for low, high, original in lines:
    if high > low and original > 0:
      whole = int(original) if original == int(original) else original
      rotary = Rotary(base, "llama3", factor, low, high, whole)
      if np.allclose(frequency_factors(rotary, 2 * count), factors, rtol=2e-6, atol=0):
        return rotary
  return None


def name_tensors(architecture: Architecture, config: decoder.Config) -> tuple[Family, dict[str, str]]:
  """Returns the tables of a model, and {name of a tensor in Hugging Face's form: its name in GGUF}."""
  family = FAMILIES[architecture.family]
  constants = package().constants
  number = next(n for n, name in constants.MODEL_ARCH_NAMES.items() if name == architecture.name)
  known = package().get_tensor_name_map(number, 1)
  names = {}
  scoring = () if config.tie_embeddings else unembedding(family.unembed)
  for table, prefix in ((family.weights(config), family.prefix_under(())), (scoring, "")):
    for weight in table:
      name = known.get_name((prefix + weight.hf).format(0), (".weight", ".bias"))
      template = name.replace("blk.0.", "blk.{}.")
      for layer in range(config.depth) if weight.stacked else (0,):
        names[(prefix + weight.hf).format(layer)] = template.format(layer)
  return family, names


def rearrange(architecture: Architecture, name: str, array: Any, heads: int, back: bool = False) -> Any:
  """Returns a tensor of GGUF in the arrangement of Hugging Face, or with `back` the reverse.

  Args:
    name: in GGUF.
    heads: of queries or of keys, whichever the tensor is for.
  """
  if name.endswith(architecture.transposed):
    return array.transpose((1, 0))
  if not name.endswith(architecture.permuted):
    return array
  rows, rest = array.shape[0] // heads // 2, tuple(array.shape[1:])
  halves = (heads, 2, rows, *rest) if back else (heads, rows, 2, *rest)
  order = (0, 2, 1, *range(3, len(halves)))
  return array.reshape(halves).transpose(order).reshape(array.shape)


class NamedTensors:
  """The tensors of a GGUF file under the names and in the arrangement of Hugging Face's models."""

  def __init__(self, gguf: GGUF, architecture: Architecture, config: decoder.Config, names: dict[str, str]):
    self.files, self._gguf, self._architecture, self._config = gguf.files, gguf, architecture, config
    missing = [name for name in names.values() if name not in gguf.tensors]
    if missing:
      more = f" and {len(missing) - 4} more" if len(missing) > 4 else ""
      raise UserError(f"{gguf.path}: the tensors {', '.join(missing[:4])}{more} are missing")
    used = {*names.values(), ROPE_FREQS, "output.weight"}
    self._names = names | {name: name for name in gguf.tensors if name not in used}

  def __iter__(self):
    return iter(self._names)

  def __contains__(self, name: str) -> bool:
    return name in self._names

  def shape(self, name: str) -> tuple[int, ...]:
    """Returns the shape of a tensor."""
    return self[name].shape

  def dtype(self, name: str) -> np.dtype:
    """Returns the dtype of a tensor when it is read."""
    return self[name].dtype

  def __getitem__(self, name: str) -> Deferred:
    """Returns a tensor, not yet read.

    Raises:
      UserError: its rows cannot be split into heads.
    """
    stored = self._names[name]
    array = self._gguf.array(stored)
    heads = self._config.kv_heads if ".attn_k." in stored else self._config.heads
    if stored.endswith(self._architecture.permuted) and array.shape[0] % (2 * heads):
      raise UserError(
        f"{self._gguf.path}: {stored} has {array.shape[0]} rows, which are not {heads} heads of even size"
      )
    return rearrange(self._architecture, stored, array, heads)
