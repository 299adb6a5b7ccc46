"""Llama, Mistral and Qwen2."""

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
  defaults: HFConfig, kv_heads: int | None, more: Callable[[Fields], dict[str, Any]]
) -> Callable[[Fields], dict[str, Any]]:
  """Returns what reads config.json.

  Args:
    kv_heads: where num_key_value_heads is missing; None is as many as there are heads, which null always is.
    more: returns the fields that Llama does not have.
  """

  def read(fields: Fields) -> dict[str, Any]:
    width, heads = (fields.integer(key, defaults[key]) for key in ("hidden_size", "num_attention_heads"))
    groups = heads if kv_heads is None or "num_key_value_heads" in fields.values else kv_heads
    size = fields.integer("head_dim", None, least=1) or head_size(fields, width, heads)
    length = fields.integer("max_position_embeddings", defaults["max_position_embeddings"], least=1)
    return dict(
      kv_heads=fields.integer("num_key_value_heads", groups, least=1), head_size=size, gated_mlp=True, norm="rms",
      activation=activation(fields, "hidden_act", "silu"), bias=False,
      tie_embeddings=fields.boolean("tie_word_embeddings", False), rotary=rope.read(fields, length, size),
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
  types = fields.sequence("layer_types", str, None)
  if types is None:
    types = [LAYER_TYPES[window is not None and i >= first] for i in range(depth)]
  unknown = set(types) - set(LAYER_TYPES)
  if unknown or len(types) != depth:
    what = f"{unknown.pop()!r} is not supported" if unknown else f"has {len(types)} entries for {depth} layers"
    raise UserError(f"{fields.where}: layer_types: {what}")
  numbers = tuple(i for i, kind in enumerate(types) if kind == "sliding_attention")
  if numbers and window is None:
    raise UserError(f"{fields.where}: layer_types names sliding_attention, but there is no sliding_window in use")
  everywhere = len(numbers) == depth
  return dict(qkv_bias=True, window=window if numbers else None, window_layers=() if everywhere else numbers)


def _write(c: decoder.Config) -> HFConfig:
  kind = "qwen2" if c.qkv_bias else "mistral" if c.window else "llama"
  hf = dict(
    model_type=kind, num_key_value_heads=c.kv_heads, head_dim=c.head_size, hidden_act=TO_HF[c.activation],
    tie_word_embeddings=c.tie_embeddings, rope_parameters=rope.write(c.rotary), sliding_window=c.window,
  )  # fmt: skip
  if kind == "llama":
    hf |= dict(attention_bias=c.attention_bias, mlp_bias=c.mlp_bias)
  if kind == "qwen2":
    layers = range(c.depth) if c.window and not c.window_layers else c.window_layers
    hf |= dict(use_sliding_window=c.window is not None, layer_types=[LAYER_TYPES[i in layers] for i in range(c.depth)])
  return hf


def _weights(c: decoder.Config) -> tuple[weights.WeightMap, ...]:
  table = weights.LLAMA
  if c.qkv_bias or c.attention_bias:
    table = (*table, *weights.QKV_BIASES)
  if c.attention_bias:
    table = (*table, weights.OUT_BIAS)
  return (*table, *weights.MLP_BIASES) if c.mlp_bias else table


LLAMA = Family(
  module=decoder.Decoder, config=decoder.Config, hf_prefix="Llama", config_keys=KEYS, defaults=DEFAULTS,
  read=reader(DEFAULTS, None, _biases), write=_write, weights=_weights, heads=weights.decoder_heads("score"),
  prefix={"": "model.", "span": "transformer."}, ignore_suffixes=("rotary_emb.inv_freq",),
  irrelevant="attention_dropout pretraining_tp is_decoder", only=dict(is_encoder_decoder=(False,)),
)  # fmt: skip
_mistral = DEFAULTS | dict(max_position_embeddings=131_072, intermediate_size=14_336)
MISTRAL = dataclasses.replace(
  LLAMA, hf_prefix="Mistral", defaults=_mistral, read=reader(_mistral, 8, _window), prefix={"": "model."}
)
_qwen2 = DEFAULTS | dict(vocab_size=151_936, max_position_embeddings=32_768, intermediate_size=22_016)
QWEN2 = dataclasses.replace(LLAMA, hf_prefix="Qwen2", defaults=_qwen2, read=reader(_qwen2, 32, _layers))
