"""Gemma, Gemma 2, and the text models of Gemma 3."""

import dataclasses
from typing import Any

from lmjax.models import decoder
from lmjax.storage.huggingface import weights
from lmjax.storage.huggingface.families import rope
from lmjax.storage.huggingface.families.base import HFConfig
from lmjax.storage.huggingface.families.llama import LLAMA, layer_windows, reader, write_layers, writer
from lmjax.utils.fields import Fields

DEFAULTS = dict(
  vocab_size=256_000, max_position_embeddings=8192, hidden_size=3072, num_hidden_layers=28, num_attention_heads=16,
  intermediate_size=24_576, rms_norm_eps=1e-6, tie_word_embeddings=True,
)  # fmt: skip
DEFAULTS2 = DEFAULTS | dict(hidden_size=2304, intermediate_size=9216, num_hidden_layers=26, num_attention_heads=8)
DEFAULTS3 = DEFAULTS2 | dict(vocab_size=262_208, max_position_embeddings=131_072)
ACT = "gelu_pytorch_tanh"
GLOBAL, LOCAL = dict(theta=1e6, part="full_attention"), dict(theta=1e4, part="sliding_attention")


def _read(fields: Fields, defaults: HFConfig = DEFAULTS) -> dict[str, Any]:
  width = fields.integer("hidden_size", defaults["hidden_size"])
  return dict(norm="rms_offset", embed_scale=width**0.5, attention_bias=fields.boolean("attention_bias", False))


def _read1(fields: Fields) -> dict[str, Any]:
  if fields.text("hidden_act", ACT) == "gelu":  # in the first config.json; the approximation is what is computed
    return _read(fields) | dict(activation="gelu_tanh")
  return _read(fields)


def _read2(fields: Fields, defaults: HFConfig = DEFAULTS2, cap: float | None = 50.0, full: int = 2) -> dict[str, Any]:
  """Returns the fields of Gemma 2; cap: of attention scores, where it is missing. full: every such layer is global."""
  depth = fields.integer("num_hidden_layers", defaults["num_hidden_layers"])
  default = None if "sliding_window" in fields.values else 4096
  windows = layer_windows(
    fields, depth, fields.integer("sliding_window", default, least=1), [(i + 1) % full > 0 for i in range(depth)]
  )
  scores = "attn_logit_softcapping", "final_logit_softcapping"
  caps = [
    fields.number(key, None if key in fields.values else value, 1e-6)
    for key, value in zip(scores, (cap, cap and 30.0), strict=True)
  ]
  return _read(fields, defaults) | windows | dict(
    output_norms=True, score_cap=caps[0], logits_cap=caps[1],
    score_scale=fields.integer("query_pre_attn_scalar", 256, least=1) ** -0.5,
  )  # fmt: skip


def _read3(fields: Fields) -> dict[str, Any]:
  """Returns the fields of Gemma 3, whose layers with a window have rotary positions of their own."""
  full = fields.integer("sliding_window_pattern", 6, least=1)
  # transformers has attn_logit_softcapping in this family's config, and does not use it.
  read = _read2(fields, DEFAULTS3, None, full) | dict(qk_norm=True, score_cap=None)
  size = fields.integer("head_dim", 256, least=1)
  length = fields.integer("max_position_embeddings", DEFAULTS3["max_position_embeddings"], least=1)
  local = rope.read(fields, length, size, theta_key="rope_local_base_freq", **LOCAL)
  if read["window"] and not read["window_layers"]:
    return read | dict(rotary=local)
  return read | (dict(window_rotary=local) if read["window"] else {})


def _write2(c: decoder.Config) -> HFConfig:
  scale = c.score_scale or 0.0
  scalar = round(scale**-2) if scale > 1e-4 else 256
  return _write1(c) | write_layers(c) | dict(
    query_pre_attn_scalar=scalar, attn_logit_softcapping=c.score_cap, final_logit_softcapping=c.logits_cap,
  )  # fmt: skip


def _write3(c: decoder.Config) -> HFConfig:
  parts = dict(full_attention=rope.write(c.rotary), sliding_attention=rope.write(c.window_rotary or c.rotary))
  return _write2(c) | dict(rope_parameters=parts)


def _write1(c: decoder.Config) -> HFConfig:
  return dict(attention_bias=c.attention_bias)


GEMMA = dataclasses.replace(
  LLAMA, hf_prefix="Gemma", defaults=DEFAULTS, read=reader(DEFAULTS, 16, _read1, head_dim=256, act=ACT),
  write=writer("gemma", _write1), prefix={"": "model."}, irrelevant="attention_dropout is_decoder hidden_activation",
  heads=lambda c: {name: table for name, table in weights.decoder_heads("score")(c).items() if name != "span"},
  only=dict(is_encoder_decoder=(False,), use_bidirectional_attention=(False,)),
)  # fmt: skip
GEMMA2 = dataclasses.replace(
  GEMMA, hf_prefix="Gemma2", defaults=DEFAULTS2, write=writer("gemma2", _write2, "hidden_activation"),
  read=reader(DEFAULTS2, 4, _read2, head_dim=256, act_key="hidden_activation", act=ACT),
  irrelevant="attention_dropout is_decoder hidden_act cache_implementation",
)  # fmt: skip
GEMMA3 = dataclasses.replace(
  GEMMA2, hf_prefix="Gemma3Text", defaults=DEFAULTS3, write=writer("gemma3_text", _write3, "hidden_activation"),
  read=reader(DEFAULTS3, 4, _read3, head_dim=256, act_key="hidden_activation", act=ACT, **GLOBAL),
  class_names=dict(ForCausalLM="Gemma3ForCausalLM"),
  irrelevant=f"{GEMMA2.irrelevant} _sliding_window_pattern",
  heads=lambda c: {name: table for name, table in weights.decoder_heads("score")(c).items() if name == "sequence"},
)  # fmt: skip
