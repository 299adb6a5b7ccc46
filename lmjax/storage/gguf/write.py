"""Writes decoders as GGUF files, which llama.cpp runs."""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
from etils import epath
from flax import traverse_util

from lmjax.storage.base import SavedModel
from lmjax.storage.gguf.config import (
  ARCHITECTURES,
  ROPE_FREQS,
  Architecture,
  frequency_factors,
  name_tensors,
  rearrange,
  write_config,
)
from lmjax.storage.gguf.file import package
from lmjax.storage.gguf.write_tokenizer import tokenizer_metadata
from lmjax.storage.huggingface.folder import HuggingFaceFolder
from lmjax.storage.huggingface.save import family_of, tensors_of
from lmjax.utils import files
from lmjax.utils.errors import UserError

KINDS = {"f32": "F32", "f16": "F16", "q8_0": "Q8_0"}
FILE_TYPES = {"f32": "ALL_F32", "f16": "MOSTLY_F16", "q8_0": "MOSTLY_Q8_0"}
IN_FULL = ("position_embd.weight", ROPE_FREQS)  # always float32, like vectors


def save(path: epath.PathLike, source: SavedModel, kind: str = "f16", with_tokenizer: bool = True) -> None:
  """Writes a saved model as a GGUF file, one tensor at a time; the file appears when it is complete.

  Args:
    kind: of the matrices: f32, f16 or q8_0 (blocks of 32 values of 8 bits with a float16 scale). Vectors are float32.

  Raises:
    UserError: llama.cpp has no such model or tokenizer, the file exists or cannot be written, or a value is too large.
  """
  path = files.expand(path)
  if path.exists():
    raise UserError(f"{path} exists; name another file")
  model, config = source.task.model, source.task.model.config
  family = family_of(model)
  name = family.to_hf(config).get("model_type")
  name = "llama" if name == "mistral" else name
  if name not in ARCHITECTURES:
    raise UserError(f"{family.hf_prefix} models cannot be written as GGUF, only {', '.join(ARCHITECTURES)}")
  architecture = ARCHITECTURES[name]
  params = {"heads": {}} | traverse_util.unflatten_dict(source.parameters(), sep="/")
  if params["heads"]:
    raise UserError(f"a model with the head {next(iter(params['heads']))!r} cannot be written as GGUF, only decoders")
  metadata = {"general.type": "model", "general.name": epath.Path(source.path).stem}
  metadata |= write_config(architecture, config) | (_tokenizer(source, config.vocabulary) if with_tokenizer else {})
  if not with_tokenizer:
    metadata["tokenizer.ggml.model"] = "none"
  _, names = name_tensors(architecture, config)
  tensors = []
  for hf, shape, make in tensors_of(family, config, params):
    stored = names[hf]
    shape = shape[::-1] if stored.endswith(architecture.transposed) else shape
    heads = config.kv_heads if ".attn_k." in stored else config.heads
    tensors.append((stored, shape, partial(_arrange, architecture, stored, make, heads)))
  if config.rotary and config.rotary.scaling == "llama3":
    factors = frequency_factors(config.rotary, config.head_size).astype(np.float32)
    tensors.append((ROPE_FREQS, factors.shape, lambda: factors))
  _write(path, architecture.name, metadata, tensors, kind)


def _arrange(architecture: Architecture, name: str, make: Callable[[], np.ndarray], heads: int) -> np.ndarray:
  array: np.ndarray = rearrange(architecture, name, make(), heads, back=True)
  return array


def _tokenizer(source: SavedModel, size: int) -> dict[str, Any]:
  tokenizer = source.tokenizer
  if tokenizer is None:
    raise UserError(f"{source.path} has no tokenizer; --without_tokenizer writes the model alone")
  # lmjax trains decoders on texts that start with the start token.
  metadata = tokenizer_metadata(tokenizer, size, adds_start=None if isinstance(source, HuggingFaceFolder) else True)
  template = getattr(tokenizer, "chat_template", None)
  return metadata | ({"tokenizer.chat_template": template} if template else {})


def _write(path: epath.Path, architecture: str, metadata: dict[str, Any], tensors: list[Any], kind: str) -> None:
  gguf = package()
  writer = gguf.GGUFWriter(None, architecture)
  add = {bool: writer.add_bool, int: writer.add_uint32, float: writer.add_float32, str: writer.add_string}
  for key, value in metadata.items():
    add.get(type(value), writer.add_array)(key, value)
  writer.add_file_type(gguf.LlamaFileType[FILE_TYPES[kind]])
  writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
  kinds = [_kind(gguf, name, shape, kind) for name, shape, _ in tensors]
  for (name, shape, _), wanted in zip(tensors, kinds, strict=True):
    block, size = gguf.GGML_QUANT_SIZES[wanted]
    length = math.prod(shape) // block * size
    writer.add_tensor_info(name, shape, np.dtype(np.float32), length, raw_dtype=wanted)
  files.make_folder(path.parent)
  with files.replacing(path) as stream:
    writer.fout, writer.state = [stream], gguf.gguf_writer.WriterState.EMPTY
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for (name, _, make), wanted in zip(tensors, kinds, strict=True):
      values = np.ascontiguousarray(make(), np.float32)
      with np.errstate(over="ignore"):
        data = gguf.quantize(values, wanted)
      if wanted == gguf.GGMLQuantizationType.F16 and np.isinf(data).any() and np.isfinite(values).all():
        raise UserError(
          f"{name} has values beyond float16, up to {np.abs(values).max():.3g}; --format gguf-f32 has them"
        )
      writer.write_tensor_data(data)


def _kind(gguf: Any, name: str, shape: tuple[int, ...], kind: str) -> Any:
  """Returns the type that a tensor is written in."""
  wanted = KINDS[kind]
  if len(shape) == 1 or name in IN_FULL:
    wanted = "F32"
  elif wanted == "Q8_0" and shape[-1] % 32:
    wanted = "F16"
  return gguf.GGMLQuantizationType[wanted]
