"""GPT-NeoX (Pythia) and Phi: layer norms, biases, and rotary positions of a part of each head."""

from typing import Any

from lmjax.models import decoder
from lmjax.storage.huggingface import weights
from lmjax.storage.huggingface.families import rope
from lmjax.storage.huggingface.families.base import TO_HF, Family, HFConfig, activation, head_size
from lmjax.utils.fields import Fields

KEYS = dict(
  vocabulary="vocab_size", length="max_position_embeddings", width="hidden_size", depth="num_hidden_layers",
  heads="num_attention_heads", mlp="intermediate_size", epsilon="layer_norm_eps",
)  # fmt: skip
DEFAULTS = dict(
  vocab_size=50_432, max_position_embeddings=2048, hidden_size=6144, num_hidden_layers=44, num_attention_heads=64,
  intermediate_size=24_576, layer_norm_eps=1e-5,
)  # fmt: skip
PHI_DEFAULTS = DEFAULTS | dict(
  vocab_size=51_200, hidden_size=2048, num_hidden_layers=24, num_attention_heads=32, intermediate_size=8192
)


def _read(fields: Fields, defaults: HFConfig, act: str, fraction: float, **keys: str) -> dict[str, Any]:
  width, heads = (fields.integer(key, defaults[key]) for key in ("hidden_size", "num_attention_heads"))
  size = head_size(fields, width, heads)
  length = fields.integer("max_position_embeddings", defaults["max_position_embeddings"], least=1)
  return dict(
    kv_heads=heads, head_size=size, activation=activation(fields, "hidden_act", act),
    tie_embeddings=fields.boolean("tie_word_embeddings", False),
    rotary=rope.read(fields, length, size, fraction=fraction, **keys),
  )  # fmt: skip


def _read_neox(fields: Fields) -> dict[str, Any]:
  biased = fields.boolean("attention_bias", True)
  return _read(fields, DEFAULTS, "gelu", 0.25, theta_key="rotary_emb_base", fraction_key="rotary_pct") | dict(
    parallel=fields.boolean("use_parallel_residual", True), bias=biased, mlp_bias=not biased,
  )  # fmt: skip


def _read_phi(fields: Fields) -> dict[str, Any]:
  read = _read(fields, PHI_DEFAULTS, "gelu_new", 0.5)
  groups = fields.integer("num_key_value_heads", read["kv_heads"], least=1)
  return read | dict(kv_heads=groups, parallel=True, shared_norm=True, unembed_bias=True)


def _write(c: decoder.Config) -> HFConfig:
  turned = {} if c.rotary is None else dict(partial_rotary_factor=c.rotary.fraction)
  return dict(
    hidden_act=TO_HF[c.activation], tie_word_embeddings=c.tie_embeddings,
    rope_parameters=rope.write(c.rotary) | turned,
  )  # fmt: skip


def _write_neox(c: decoder.Config) -> HFConfig:
  return _write(c) | dict(model_type="gpt_neox", attention_bias=c.bias, use_parallel_residual=c.parallel)


def _write_phi(c: decoder.Config) -> HFConfig:
  return _write(c) | dict(model_type="phi", num_key_value_heads=c.kv_heads)


_neox: dict[str, Any] = dict(module=decoder.Decoder, config=decoder.Config, config_keys=KEYS)
GPT_NEOX = Family(
  **_neox, hf_prefix="GPTNeoX", defaults=DEFAULTS, read=_read_neox, write=_write_neox,
  weights=lambda c: weights.gpt_neox(c.bias), heads=weights.decoder_heads("classifier"), prefix={"": "gpt_neox."},
  unembed="embed_out.weight", irrelevant="attention_dropout hidden_dropout is_decoder",
  only=dict(is_encoder_decoder=(False,)),
  ignore_suffixes=("attention.bias", "attention.masked_bias", "rotary_emb.inv_freq"),
)  # fmt: skip
PHI = Family(
  **_neox, hf_prefix="Phi", defaults=PHI_DEFAULTS, read=_read_phi, write=_write_phi, weights=lambda c: weights.PHI,
  heads=lambda c: {name: table for name, table in weights.decoder_heads("score")(c).items() if name != "span"},
  prefix={"": "model."}, irrelevant="attention_dropout embd_pdrop is_decoder resid_pdrop",
  only=dict(is_encoder_decoder=(False,), qk_layernorm=(False,)), ignore_suffixes=("rotary_emb.inv_freq",),
)  # fmt: skip
