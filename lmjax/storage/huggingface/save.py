"""Writes models as Hugging Face folders."""

import dataclasses
import itertools
import json
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
from etils import epath
from flax import linen as nn

from lmjax.data.tokenizers.base import Tokenizer, ends_of
from lmjax.data.tokenizers.special import Template
from lmjax.models import decoder, encoder_decoder, expert_decoder
from lmjax.storage import safetensors
from lmjax.storage.huggingface import tokenizer as tokenizer_files
from lmjax.storage.huggingface.companions import companions
from lmjax.storage.huggingface.families import FAMILIES, Family, rope
from lmjax.storage.huggingface.load import LABELS, axis_sizes, depth_of
from lmjax.storage.huggingface.weights import WeightMap, hf_shape, join, unembedding, unembedding_bias
from lmjax.utils import pytree
from lmjax.utils.errors import UserError
from lmjax.utils.fields import Fields
from lmjax.utils.files import expand, new_folder, read_bytes, write
from lmjax.utils.pytree import Tree

TIES = ("tie_word_embeddings", "scale_decoder_outputs", "logits_scaling")


def save(
  folder: epath.PathLike, model: nn.Module, params: Tree, tokenizer: Tokenizer | None = None,
  settings: dict[str, Any] | None = None, files: epath.PathLike | None = None, with_tokenizer: bool = True,
  template: Template | None = None,
) -> None:  # fmt: skip
  """Writes a model as a Hugging Face folder, one tensor at a time; the folder appears when it is complete.

  Args:
    params: {"model": ..., "heads": {...}} of anything that is indexed by layer: arrays, LazyTensor.
    settings: the config.json of the folder that the model comes from; keys that follow from the model replace its own.
    files: a folder whose other files are copied, those of its tokenizer and of sentence-transformers; `tokenizer` is
      then not used. with_tokenizer: whether the tokenizer's files are among them.
    template: what the tokenizer puts around texts; by default that of the kind of model.

  Raises:
    UserError: the model has no Hugging Face equivalent, or the folder is not empty or cannot be written.
  """
  folder = expand(folder)
  if folder.is_dir() and any(folder.iterdir()):
    raise UserError(f"{folder} is not empty; name another folder")
  kind, config, heads = kind_of(model, str((settings or {}).get("model_type", ""))), model.config, params["heads"]
  family = FAMILIES[kind]
  if files:
    tokenizer = None
  ending = bare(model, params)
  hf = _write_config(family, config, heads, ending, tokenizer, settings or {}) | {"model_type": kind}
  dtype = {"bfloat16": "BF16", "float16": "F16"}.get(str(hf.get("dtype") or hf.get("torch_dtype")), "F32")
  dtype = np.dtype(safetensors.DTYPES[dtype])
  tensors = list(tensors_of(family, config, params, ending))
  shapes = {name: (dtype, shape) for name, shape, _ in tensors}
  with new_folder(folder) as part:
    safetensors.write(part / "model.safetensors", shapes, (make() for _, _, make in tensors))
    write(part / "config.json", json.dumps(hf, indent=2))
    for name, file in companions(files, with_tokenizer).items() if files else ():
      (part / name).parent.mkdir(parents=True, exist_ok=True)
      write(part / name, file if isinstance(file, str) else read_bytes(file))
    if tokenizer is not None:
      usual = {"encoder": "pair", "encoder_decoder": "source"}.get(model.kind, "start")
      tokenizer_files.write(part, tokenizer, template or usual)


def bare(model: nn.Module, params: Tree) -> str:
  """Returns the ending of the class name of a model that cannot score tokens; empty for others."""
  config = model.config
  if isinstance(config, encoder_decoder.Config) and config.decoder_depth == 0:
    return "EncoderModel"
  return "" if config.tie_embeddings or "unembed" in params["model"] else "Model"


def _write_config(
  family: Family, config: Any, heads: Tree, bare: str, tokenizer: Tokenizer | None, settings: dict[str, Any]
) -> dict[str, Any]:
  """Returns config.json."""
  hf = family.to_hf(config)
  if set(LABELS) & set(heads) and bare != "EncoderModel" and hf.get("scale_decoder_outputs"):
    raise UserError(
      "the head takes the decoder's vectors divided by sqrt(width), as those that score tokens are, and that of "
      f"{family.hf_prefix} as they are: train it with config.model.scale_output=False"
    )
  if set(LABELS) & set(heads) or bare:  # there is no unembedding: keep the keys of `settings`
    hf = {key: value for key, value in hf.items() if key not in TIES}
  parts = {
    key: settings[key] | hf[key] for key in hf if key.endswith("_config") and isinstance(settings.get(key), dict)
  }
  hf = family.initial(config) | settings | hf | parts | {"architectures": [family.architecture(heads, bare)]}
  classes = next((heads[head]["scores"]["kernel"].shape[-1] for head in LABELS[:3] if head in heads), 0)
  if classes and len(hf.get("id2label", ())) != classes:
    names = [f"LABEL_{i}" for i in range(classes)]
    hf |= {"id2label": {str(i): name for i, name in enumerate(names)}}
    hf |= {"label2id": {name: i for i, name in enumerate(names)}}
  if tokenizer is not None:
    ends = ends_of(tokenizer)
    hf |= {"bos_token_id": tokenizer.start, "eos_token_id": list(ends) if len(ends) > 1 else tokenizer.end}
    if isinstance(config, encoder_decoder.Config):
      hf["decoder_start_token_id"] = settings.get("decoder_start_token_id", tokenizer.start)
  return hf


def tensors_of(
  family: Family, config: Any, params: Tree, bare: str = ""
) -> Iterator[tuple[str, tuple[int, ...], Callable[[], np.ndarray]]]:
  """Yields the name, the shape and a function that makes the array of each tensor of a model and its heads."""
  flat, heads = pytree.named_leaves(params), params["heads"]
  known = family.heads(config)
  for head in heads:
    if head not in known:
      raise UserError(f"the head {head!r} has no Hugging Face equivalent in {family.hf_prefix} models")
  yield from _tensors_of(family.weights(config), "model", flat, config, family.prefix_under(heads, bare))
  if "model/unembed/table" in flat:
    yield from _tensors_of(unembedding(family.unembed), "model", flat, config, "")
  if "model/unembed_bias/bias" in flat:
    yield from _tensors_of(unembedding_bias(family.unembed, config), "model", flat, config, "")
  for head in heads:
    yield from _tensors_of(known[head], "heads", flat, config, "")
    if head == "masked_lm" and family.unembed_bias and not config.tie_embeddings:
      bias = [weight._replace(hf=family.unembed_bias) for weight in known[head] if weight.lmjax == "masked_lm/bias"]
      yield from _tensors_of(bias, "heads", flat, config, "")


def _tensors_of(weights: Iterable[WeightMap], part: str, flat: dict[str, Any], config: Any, prefix: str):
  """Yields name, shape and function for each tensor of a table."""
  for weight in weights:
    sizes, leaves = axis_sizes(config), []
    for path in weight.paths:
      if f"{part}/{path}" not in flat:
        raise UserError(f"the model has no parameter {part}/{path}, which the tensor {weight.hf} needs")
      leaves.append(flat[f"{part}/{path}"])
    if weight.layout.startswith("Y"):
      sizes["Y"] = leaves[0].shape[-1]

    def make(index: tuple[int, ...], weight=weight, leaves=leaves, sizes=sizes) -> np.ndarray:
      # Indexing first keeps all but one layer of a stacked parameter on disk or on its device.
      parts = [np.asarray(leaf[index] if index else leaf) for leaf in leaves]
      parts = [part[: config.vocabulary] for part in parts] if weight.of_vocabulary else parts
      return join(parts, weight.layout, sizes)

    ranges = [range(depth_of(config, weight))] * weight.stacked + [range(sizes["X"])] * weight.of_experts
    for index in itertools.product(*ranges):  # of a layer, and of an expert
      name = prefix + weight.hf.format(*index)
      yield name, hf_shape(weight.layout, sizes), (lambda index=index, make=make: make(index))


def family_of(model: nn.Module) -> Family:
  """Returns the family that a model is written as; see `kind_of`."""
  return FAMILIES[kind_of(model)]


def kind_of(model: nn.Module, first: str = "") -> str:
  """Returns the `model_type` that a model is written as.

  Args:
    first: the `model_type` that is taken if it fits, as others do.

  Raises:
    UserError: no family has such a model.
  """
  own = type(model.config)  # a decoder of images, or one with experts, has more than a decoder
  kinds = [kind for kind, family in FAMILIES.items() if isinstance(model, family.module) and family.config is own]
  if not kinds:
    raise UserError(f"{type(model).__name__} models have no Hugging Face equivalent, so they cannot be converted")
  if own in (decoder.Config, expert_decoder.Config):
    return _decoder_type(model.config, first)
  for kind in sorted(kinds, key=lambda kind: kind != first):
    if FAMILIES[kind].has(model.config):
      return kind
  known = ", ".join(FAMILIES[kind].hf_prefix for kind in kinds)
  raise UserError(f"this {model.kind} has no Hugging Face equivalent: it is none of {known}")


def _plain(config: decoder.Config) -> dict[str, Any]:
  """Returns the fields that say what a decoder computes, equal for equal models."""
  fields = {field.name: getattr(config, field.name) for field in dataclasses.fields(config)}
  for name in ("dropout", "dtype", "scan", "remat"):
    del fields[name]
  if config.window is None or len(set(config.window_layers)) == config.depth:
    fields["window_layers"] = ()
  if config.bias:
    fields |= dict(attention_bias=False, mlp_bias=False)
  if config.bias or config.attention_bias:
    fields["qkv_bias"] = False
  for name in ("rotary", "window_rotary"):  # without what its kind does not use
    rotary = fields[name]
    fields[name] = rope.write(rotary), rotary.original if rotary and rotary.scaling == "dynamic" else 0
  return fields


def _decoder_type(config: decoder.Config, first: str) -> str:
  """Returns the `model_type` whose config.json of a decoder is read as the same decoder; see `family_of`."""
  wanted = _plain(config)
  best, fewest = "", ["?"] * 100
  kinds = [kind for kind, family in FAMILIES.items() if family.config is type(config)]
  for kind in sorted(kinds, key=lambda kind: kind != first):
    try:
      read = FAMILIES[kind].from_hf(Fields(FAMILIES[kind].to_hf(config), "config.json"))
    except UserError:
      continue
    wrong = [name for name, value in _plain(read).items() if value != wanted[name]]
    if len(wrong) < len(fewest):
      best, fewest = kind, wrong
  if fewest:
    raise UserError(
      f"this decoder has no Hugging Face equivalent: it differs from {best}, the closest, in {', '.join(fewest)}"
    )
  return best
