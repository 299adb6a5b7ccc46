"""Writes models as Hugging Face folders."""

import json
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
from etils import epath
from flax import linen as nn

from lmjax.data.tokenizers.base import Tokenizer, ends_of
from lmjax.models import encoder, encoder_decoder
from lmjax.storage import safetensors
from lmjax.storage.huggingface import tokenizer as tokenizer_files
from lmjax.storage.huggingface.companions import companions
from lmjax.storage.huggingface.families import FAMILIES, Family
from lmjax.storage.huggingface.load import LABELS, axis_sizes, depth_of
from lmjax.storage.huggingface.weights import WeightMap, arrange, hf_shape, unembedding
from lmjax.utils import pytree
from lmjax.utils.errors import UserError
from lmjax.utils.files import new_folder, read_bytes, write
from lmjax.utils.pytree import Tree

TIES = ("tie_word_embeddings", "scale_decoder_outputs")


def save(
  folder: epath.PathLike, model: nn.Module, params: Tree, tokenizer: Tokenizer | None = None,
  settings: dict[str, Any] | None = None, files: epath.PathLike | None = None, with_tokenizer: bool = True,
) -> None:  # fmt: skip
  """Writes a model as a Hugging Face folder, one tensor at a time; the folder appears when it is complete.

  Args:
    params: {"model": ..., "heads": {...}} of anything that is indexed by layer: arrays, LazyTensor.
    settings: the config.json of the folder that the model comes from; keys that follow from the model replace its own.
    files: a folder whose other files are copied, those of its tokenizer and of sentence-transformers; `tokenizer` is
      then not used. with_tokenizer: whether the tokenizer's files are among them.

  Raises:
    UserError: the model has no Hugging Face equivalent, or the folder is not empty or cannot be written.
  """
  folder = epath.Path(folder).expanduser()
  if folder.is_dir() and any(folder.iterdir()):
    raise UserError(f"{folder} is not empty; name another folder")
  family, config, heads = family_of(model), model.config, params["heads"]
  if files:
    tokenizer = None
  ending = bare(model, params)
  hf = _write_config(family, config, heads, ending, tokenizer, settings or {})
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
      template = {encoder.Config: "pair", encoder_decoder.Config: "source"}.get(type(config), "start")
      tokenizer_files.write(part, tokenizer, template)


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
  if set(LABELS) & set(heads) or bare:  # there is no unembedding: keep the keys of `settings`
    hf = {key: value for key, value in hf.items() if key not in TIES}
  hf = settings | hf | {"architectures": [family.architecture(heads, bare)]}
  classes = next((heads[head]["scores"]["kernel"].shape[-1] for head in LABELS if head in heads), 0)
  if classes and len(hf.get("id2label", ())) != classes:
    names = [f"LABEL_{i}" for i in range(classes)]
    hf |= {"id2label": {str(i): name for i, name in enumerate(names)}}
    hf |= {"label2id": {name: i for i, name in enumerate(names)}}
  if tokenizer is not None:
    ends = ends_of(tokenizer)
    hf |= {"bos_token_id": tokenizer.start, "eos_token_id": list(ends) if len(ends) > 1 else tokenizer.end}
    hf |= {"decoder_start_token_id": tokenizer.start} if isinstance(config, encoder_decoder.Config) else {}
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

    def make(layer: int | None, weight=weight, leaves=leaves, sizes=sizes) -> np.ndarray:
      # Indexing first keeps all but one layer of a stacked parameter on disk or on its device.
      parts = [np.asarray(leaf if layer is None else leaf[layer]) for leaf in leaves]
      array = parts[0] if len(parts) == 1 else np.stack(parts)
      array = array[: config.vocabulary] if weight.layout.startswith("V") else array
      return arrange(array, weight.layout, sizes, back=True)

    for layer in range(depth_of(config, weight)) if weight.stacked else (None,):
      name = prefix + weight.hf.format(layer)
      yield name, hf_shape(weight.layout, sizes), (lambda layer=layer, make=make: make(layer))


def family_of(model: nn.Module) -> Family:
  """Returns the family that a model is written as.

  Raises:
    UserError: no family has such a model.
  """
  if not any(isinstance(model, family.module) for family in FAMILIES.values()):
    raise UserError(f"{type(model).__name__} models have no Hugging Face equivalent, so they cannot be converted")
  return FAMILIES[_model_type(model)]


def _model_type(model: nn.Module) -> str:
  c = model.config
  if isinstance(c, encoder.Config):
    return "roberta" if c.offset else "bert" if c.token_types else "distilbert"
  if isinstance(c, encoder_decoder.Config):
    if c.positions != "relative" or c.bias or c.scale_scores or c.post_norm or c.norm != "rms":
      raise UserError("this encoder-decoder has no Hugging Face equivalent: it is not a T5")
    return "t5"
  if c.rotary is None:
    scaled = c.post_norm and (c.scale_by_layer or not c.scale_scores)
    if c.gated_mlp or c.norm != "layer" or not c.bias or c.kv_heads != c.heads or c.window or scaled:
      raise UserError("this decoder has no Hugging Face equivalent: it is neither GPT-1, GPT-2 nor Llama")
    return "openai-gpt" if c.post_norm else "gpt2"
  mixed = c.qkv_bias or (c.window and not c.window_layers)
  odd = c.scale_by_layer or not c.scale_scores or (mixed and (c.attention_bias or c.mlp_bias))
  if not c.gated_mlp or c.norm != "rms" or c.post_norm or c.bias or odd or (c.window_layers and not c.qkv_bias):
    raise UserError("this decoder has no Hugging Face equivalent: with rotary positions it must be a Llama")
  return "qwen2" if c.qkv_bias else "mistral" if c.window else "llama"
