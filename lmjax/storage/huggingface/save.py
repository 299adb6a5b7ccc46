"""Models written in Hugging Face's format."""

import contextlib
import json
import shutil
from collections.abc import Iterable
from typing import Any

import numpy as np
from etils import epath
from flax import linen as nn

from lmjax.data.tokenizers.base import Tokenizer
from lmjax.models import encoder, encoder_decoder
from lmjax.storage import safetensors
from lmjax.storage.huggingface.families import FAMILIES, Family
from lmjax.storage.huggingface.load import EXTRAS, LABELS, axis_sizes, paths_of
from lmjax.storage.huggingface.weights import WeightMap, arrange
from lmjax.utils import pytree
from lmjax.utils.errors import UserError
from lmjax.utils.pytree import Tree

TIES = ("tie_word_embeddings", "scale_decoder_outputs")


def save(
  folder: epath.PathLike, model: nn.Module, params: Tree, tokenizer: Tokenizer | None = None,
  settings: dict[str, Any] | None = None, files: epath.PathLike | None = None,
) -> None:  # fmt: skip
  """Writes a model as Hugging Face's folder, one tensor at a time; it appears under its name when it is whole.

  Args:
    params: {"model": ..., "heads": {...}}, of anything that gives a layer by its number: arrays, or LazyTensor.
    settings: those the folder had that the model came from; lmjax go over them.
    files: a folder whose tokenizer files are copied, instead of the tokenizer's own.

  Raises:
    UserError: the family is not hf, or the folder exists and is not empty.
  """
  folder = epath.Path(folder).expanduser()
  if folder.exists() and any(folder.iterdir()):
    raise UserError(f"{folder} is not empty; name another folder")
  family, config, heads = _family(model), model.config, params["heads"]
  flat = pytree.named_leaves(params)
  hf = family.to_hf(config)
  if set(LABELS) & set(heads):  # whether the table scores words is then nobody's business
    hf = {key: value for key, value in hf.items() if key not in TIES}
  hf = (settings or {}) | hf | {"architectures": [family.architecture(heads)]}
  hf |= _labels(heads, hf)
  if tokenizer is not None and not files:
    hf |= {"bos_token_id": tokenizer.start, "eos_token_id": tokenizer.end}
    hf |= {"decoder_start_token_id": tokenizer.start} if isinstance(config, encoder_decoder.Config) else {}
  dtype = np.dtype(safetensors.DTYPES[{"bfloat16": "BF16", "float16": "F16"}.get(_dtype(hf), "F32")])
  part = folder.parent / (folder.name + ".part")
  with contextlib.ExitStack() as stack:
    stack.callback(lambda: shutil.rmtree(part, ignore_errors=True))
    part.mkdir(parents=True, exist_ok=True)
    plan = list(_hf_tensors(family.lines(config), "model", flat, config, family.prefixed(heads)))
    beside = [line for line in family.extra_weights(config) if not heads or f"model/{line.lmjax}" in flat]
    plan += list(_hf_tensors(beside, "model", flat, config, ""))
    for head in heads:
      if head not in family.heads(config):
        raise UserError(f"a {hf['model_type']} has no head {head!r} among Hugging Face's models")
      plan += list(_hf_tensors(family.heads(config)[head], "heads", flat, config, ""))
    shapes = {name: (dtype, shape) for name, shape, _ in plan}
    try:
      safetensors.write(part / "model.safetensors", shapes, (make() for _, _, make in plan))
      (part / "config.json").write_text(json.dumps(hf, indent=2))
      for name in EXTRAS if files else ():
        if (epath.Path(files) / name).exists():
          (epath.Path(files) / name).copy(part / name)
      if tokenizer is not None and not files:
        reads = {encoder.Config: "pair", encoder_decoder.Config: "source"}.get(type(config), "")
        tokenizer.write(part, tokenizer, reads)
      if folder.exists():
        folder.rmdir()
      part.rename(folder)
    except OSError as error:
      raise UserError(f"{folder} could not be written: {error}; nothing was left behind") from error


def _labels(heads: Tree, hf: dict[str, Any]) -> dict[str, Any]:
  """Returns the names of the classes of a head, where the settings do not have as many."""
  count = next((heads[head]["scores"]["kernel"].shape[-1] for head in LABELS if head in heads), 0)
  if not count or len(hf.get("id2label", ())) == count:
    return {}
  names = {str(i): f"LABEL_{i}" for i in range(count)}
  return {"id2label": names, "label2id": {name: int(i) for i, name in names.items()}}


def _hf_tensors(lines: Iterable[WeightMap], room: str, flat: dict[str, Any], config, prefix: str):
  """Yields for each of their tensors its name, its shape and a function that makes it."""
  for line in lines:
    sizes, leaves = axis_sizes(config), []
    for path in paths_of(line):
      if f"{room}/{path}" not in flat:
        raise UserError(f"the model has no {room}/{path}, which {line.hf} is made of")
      leaves.append(flat[f"{room}/{path}"])
    if line.layout.startswith("Y"):
      sizes["Y"] = leaves[0].shape[-1]

    def make(layer: int | None, line=line, leaves=leaves, sizes=sizes) -> np.ndarray:
      # Only the layer asked for leaves the device.
      parts = [np.asarray(leaf if layer is None else leaf[layer]) for leaf in leaves]
      whole = parts[0] if len(parts) == 1 else np.stack(parts)
      whole = whole[: config.vocabulary] if line.layout.startswith("V") else whole
      return arrange(whole, line.layout, sizes, back=True)

    stacked = "{}" in line.hf
    shape = _shape(line, sizes)
    for layer in range(config.depth) if stacked else (None,):
      yield prefix + line.hf.format(layer), shape, (lambda layer=layer, make=make: make(layer))


def _shape(line: WeightMap, sizes: dict[str, int]) -> tuple[int, ...]:
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
  """Returns the family that a model of lmjax is written as."""
  if not any(isinstance(model, family.module) for family in FAMILIES.values()):
    raise UserError(f"a {type(model).__name__} has no like among Hugging Face's models")
  return FAMILIES[_kind(model)]


def _kind(model: nn.Module) -> str:
  c = model.config
  if isinstance(c, encoder.Config):
    return "roberta" if c.offset else "bert" if c.token_types else "distilbert"
  if isinstance(c, encoder_decoder.Config):
    if c.positions != "relative" or c.bias or c.scale_scores or c.post_norm or c.norm != "rms":
      raise UserError("this encoder-decoder is no T5, and Hugging Face's models have no like of it")
    return "t5"
  if c.rotary is None:
    if c.gated_mlp or c.norm != "layer" or not c.bias or not c.tie_embeddings or c.kv_heads != c.heads or c.window:
      raise UserError("this decoder is neither GPT-1, GPT-2 nor Llama, and Hugging Face's models have no like of it")
    return "openai-gpt" if c.post_norm else "gpt2"
  if not c.gated_mlp or c.norm != "rms" or c.post_norm or c.bias:
    raise UserError("this decoder is no Llama, and Hugging Face's models have no like of it")
  return "qwen2" if c.qkv_bias else "mistral" if c.window else "llama"


def _dtype(hf: dict[str, Any]) -> str:
  return str(hf.get("dtype") or hf.get("torch_dtype") or "float32")
