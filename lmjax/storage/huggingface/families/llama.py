"""Llama and what has its shape: Mistral, Qwen2, Qwen3, Granite and Phi-3."""

import dataclasses
from collections.abc import Callable
from typing import Any

from lmjax.models import decoder
from lmjax.storage.huggingface import weights
from lmjax.storage.huggingface.families import rope
from lmjax.storage.huggingface.families.base import TO_HF, Family, HFConfig, activation, head_size
from lmjax.utils.errors import UserError
from lmjax.utils.fields import Fields

KEYS = dict(
  vocabulary="vocab_size", length="max_position_embeddings", width="hidden_size", depth="num_hidden_layers",
  heads="num_attention_heads", mlp="intermediate_size", epsilon="rms_norm_eps",
)  # fmt: skip
DEFAULTS = dict(
  vocab_size=32_000, max_position_embeddings=2048, hidden_size=4096, num_hidden_layers=32, num_attention_heads=32,
  intermediate_size=11_008, rms_norm_eps=1e-6,
)  # fmt: skip
LAYER_TYPES = ("full_attention", "sliding_attention")


def reader(
  defaults: HFConfig, kv_heads: int | None, more: Callable[[Fields], dict[str, Any]], head_dim: int | None = None,
  act_key: str = "hidden_act", act: str = "silu", **rotary: Any,
) -> Callable[[Fields], dict[str, Any]]:  # fmt: skip
  """Returns what reads config.json.

  Args:
    kv_heads: where num_key_value_heads is missing; None is as many as there are heads, which null always is.
    more: returns the fields that Llama does not have.
    head_dim: where it is missing; None is the width divided by the heads.
    act_key, act: the key of the activation, and the activation where it is missing.
    rotary: arguments of `rope.read`.
  """

  def read(fields: Fields) -> dict[str, Any]:
    width, heads = (fields.integer(key, defaults[key]) for key in ("hidden_size", "num_attention_heads"))
    groups = heads if kv_heads is None or "num_key_value_heads" in fields.values else kv_heads
    size = fields.integer("head_dim", head_dim, least=1) or head_size(fields, width, heads)
    length = fields.integer("max_position_embeddings", defaults["max_position_embeddings"], least=1)
    return dict(
      kv_heads=fields.integer("num_key_value_heads", groups, least=1), head_size=size, gated_mlp=True, norm="rms",
      activation=activation(fields, act_key, act), bias=False,
      tie_embeddings=fields.boolean("tie_word_embeddings", defaults.get("tie_word_embeddings", False)),
      rotary=rope.read(fields, length, size, **rotary),
    ) | more(fields)  # fmt: skip

  return read


def _biases(fields: Fields) -> dict[str, Any]:
  return dict(
    attention_bias=fields.boolean("attention_bias", False), mlp_bias=fields.boolean("mlp_bias", False)
  )  # fmt: skip


def _window(fields: Fields) -> dict[str, Any]:
  default = None if "sliding_window" in fields.values else 4096  # null: without a window
  return dict(window=fields.integer("sliding_window", default, least=1))


def _layers(fields: Fields) -> dict[str, Any]:
  """Qwen2's window, which some layers have; keys of a window that is not used are read and have no effect."""
  depth = fields.integer("num_hidden_layers", 32)
  first = fields.integer("max_window_layers", 28)
  window = _window(fields)["window"] if fields.boolean("use_sliding_window", False) else None
  fields.get("sliding_window", None)
  return dict(qkv_bias=True) | layer_windows(
    fields, depth, window, [window is not None and i >= first for i in range(depth)]
  )


def write_layers(c: decoder.Config) -> HFConfig:
  """Returns the keys that `layer_windows` reads."""
  layers = range(c.depth) if c.window and not c.window_layers else c.window_layers
  return dict(sliding_window=c.window, layer_types=[LAYER_TYPES[i in layers] for i in range(c.depth)])


def layer_windows(fields: Fields, depth: int, window: int | None, default: list[bool]) -> dict[str, Any]:
  """Returns the fields of a window that some layers have, by `layer_types`; default: which, where it is missing."""
  types = fields.sequence("layer_types", str, None)
  if types is None:
    types = [LAYER_TYPES[i] for i in default]
  unknown = set(types) - set(LAYER_TYPES)
  if unknown or len(types) != depth:
    what = f"{unknown.pop()!r} is not supported" if unknown else f"has {len(types)} entries for {depth} layers"
    raise UserError(f"{fields.where}: layer_types: {what}")
  numbers = tuple(i for i, kind in enumerate(types) if kind == "sliding_attention")
  if numbers and window is None:
    raise UserError(f"{fields.where}: layer_types names sliding_attention, but there is no sliding_window in use")
  everywhere = len(numbers) == depth
  return dict(window=window if numbers else None, window_layers=() if everywhere else numbers)


def _read_qwen3(fields: Fields) -> dict[str, Any]:
  return _layers(fields) | dict(qkv_bias=False, qk_norm=True, attention_bias=fields.boolean("attention_bias", False))


MULTIPLIERS = dict(
  embed_scale="embedding_multiplier", logits_scaling="logits_scaling", residual_scale="residual_multiplier",
  score_scale="attention_multiplier",
)  # fmt: skip


def _read_granite(fields: Fields) -> dict[str, Any]:
  scales = {field: fields.number(key, 1.0) for field, key in MULTIPLIERS.items()}
  if not scales["logits_scaling"]:
    raise UserError(f"{fields.where}: logits_scaling must not be 0")
  return _biases(fields) | scales


def _write_phi3(c: decoder.Config) -> HFConfig:
  hf: HFConfig = dict(sliding_window=c.window)
  if c.rotary and c.rotary.scaling == "longrope":
    hf |= dict(original_max_position_embeddings=c.rotary.original)
  return hf


def writer(kind: str, more: Callable[[decoder.Config], HFConfig], act_key: str = "hidden_act") -> Any:
  """Returns what writes config.json; more: returns the keys that not all models of Llama's shape have."""

  def write(c: decoder.Config) -> HFConfig:
    hf = dict(
      model_type=kind, num_key_value_heads=c.kv_heads, head_dim=c.head_size, tie_word_embeddings=c.tie_embeddings,
      rope_parameters=rope.write(c.rotary),
    )  # fmt: skip
    return hf | {act_key: TO_HF[c.activation]} | more(c)

  return write


def _write_biases(c: decoder.Config) -> HFConfig:
  return dict(attention_bias=c.attention_bias, mlp_bias=c.mlp_bias)


def _write_qwen(c: decoder.Config) -> HFConfig:
  return write_layers(c) | dict(use_sliding_window=c.window is not None)


def _write_granite(c: decoder.Config) -> HFConfig:
  scales = {key: getattr(c, field) for field, key in MULTIPLIERS.items()}
  return _write_biases(c) | {key: 1.0 if value is None else value for key, value in scales.items()}


def shape_weights(c: decoder.Config) -> tuple[weights.WeightMap, ...]:
  """Returns the table of a model with Llama's names."""
  table = weights.GEMMA2 if c.output_norms else weights.LLAMA
  if c.qkv_bias or c.attention_bias:
    table = (*table, *weights.QKV_BIASES)
  if c.attention_bias:
    table = (*table, weights.OUT_BIAS)
  if c.qk_norm:
    table = (*table, *weights.QK_NORMS)
  return (*table, *weights.MLP_BIASES) if c.mlp_bias else table


LLAMA = Family(
  module=decoder.Decoder, config=decoder.Config, hf_prefix="Llama", config_keys=KEYS, defaults=DEFAULTS,
  read=reader(DEFAULTS, None, _biases), write=writer("llama", _write_biases), weights=shape_weights,
  heads=weights.decoder_heads("score"),
  prefix={"": "model.", "span": "transformer."}, ignore_suffixes=("rotary_emb.inv_freq",),
  irrelevant="attention_dropout pretraining_tp is_decoder is_llama_config",
  only=dict(is_encoder_decoder=(False,), rope_interleaved=(False,)),
)  # fmt: skip
_mistral = DEFAULTS | dict(max_position_embeddings=131_072, intermediate_size=14_336)
MISTRAL = dataclasses.replace(
  LLAMA, hf_prefix="Mistral", defaults=_mistral, read=reader(_mistral, 8, _window), prefix={"": "model."},
  write=writer("mistral", lambda c: dict(sliding_window=c.window)),
)  # fmt: skip
_qwen2 = DEFAULTS | dict(vocab_size=151_936, max_position_embeddings=32_768, intermediate_size=22_016)
QWEN2 = dataclasses.replace(
  LLAMA, hf_prefix="Qwen2", defaults=_qwen2, read=reader(_qwen2, 32, _layers), write=writer("qwen2", _write_qwen)
)
QWEN3 = dataclasses.replace(
  QWEN2, hf_prefix="Qwen3", read=reader(_qwen2, 32, _read_qwen3, head_dim=128),
  write=writer("qwen3", lambda c: _write_qwen(c) | dict(attention_bias=c.attention_bias)),
)  # fmt: skip
GRANITE = dataclasses.replace(
  LLAMA, hf_prefix="Granite", read=reader(DEFAULTS, None, _read_granite), write=writer("granite", _write_granite),
  heads=lambda c: {}, prefix={"": "model."},
)  # fmt: skip
_phi3 = DEFAULTS | dict(
  vocab_size=32_064, hidden_size=3072, intermediate_size=8192, max_position_embeddings=4096, rms_norm_eps=1e-5
)
PHI3 = dataclasses.replace(
  LLAMA, hf_prefix="Phi3", defaults=_phi3, write=writer("phi3", _write_phi3), weights=lambda c: weights.PHI3,
  read=reader(
    _phi3, None, lambda fields: dict(window=fields.integer("sliding_window", None, least=1)), fraction=1.0,
    original=4096, kinds=("default", "longrope", "su"),
  ),
  heads=lambda c: {name: table for name, table in weights.decoder_heads("score")(c).items() if name != "span"},
  prefix={"": "model."}, irrelevant="attention_dropout embd_pdrop is_decoder resid_pdrop",
  only=dict(is_encoder_decoder=(False,), attention_bias=(False,)),
)  # fmt: skip
