"""Mixtral and Qwen3-MoE: Llama's shape with a mixture of experts."""

import dataclasses
from typing import Any

from lmjax.models import expert_decoder
from lmjax.storage.huggingface import weights
from lmjax.storage.huggingface.families.base import HFConfig
from lmjax.storage.huggingface.families.llama import DEFAULTS, KEYS, LLAMA, reader, writer
from lmjax.utils.fields import Fields

MIXTRAL_KEYS = KEYS | dict(experts="num_local_experts", chosen="num_experts_per_tok")
MIXTRAL_DEFAULTS = DEFAULTS | dict(
  max_position_embeddings=131_072, intermediate_size=14_336, rms_norm_eps=1e-5, num_local_experts=8,
  num_experts_per_tok=2,
)  # fmt: skip
QWEN_KEYS = KEYS | dict(experts="num_experts", chosen="num_experts_per_tok", mlp="moe_intermediate_size")
QWEN_DEFAULTS = DEFAULTS | dict(
  vocab_size=151_936, max_position_embeddings=32_768, hidden_size=2048, num_hidden_layers=24, num_experts=128,
  num_experts_per_tok=8, moe_intermediate_size=768,
)  # fmt: skip
LOSSES = "attention_dropout output_router_logits router_aux_loss_coef router_jitter_noise"  # in training alone


def _read_mixtral(fields: Fields) -> dict[str, Any]:
  return dict(window=fields.integer("sliding_window", None, least=1))


def _read_qwen(fields: Fields) -> dict[str, Any]:
  """Returns the fields of Qwen3-MoE; a window that is not used has no effect."""
  window = fields.integer("sliding_window", None if "sliding_window" in fields.values else 4096, least=1)
  return dict(
    window=window if fields.boolean("use_sliding_window", False) else None, qk_norm=True,
    normalize=fields.boolean("norm_topk_prob", False), attention_bias=fields.boolean("attention_bias", False),
  )  # fmt: skip


def _write_qwen(c: expert_decoder.Config) -> HFConfig:
  return dict(
    sliding_window=c.window, use_sliding_window=c.window is not None, norm_topk_prob=c.normalize,
    attention_bias=c.attention_bias, decoder_sparse_step=1, mlp_only_layers=[],
  )  # fmt: skip


def _qwen_weights(c: expert_decoder.Config) -> tuple[weights.WeightMap, ...]:
  biases = (*weights.QKV_BIASES, weights.OUT_BIAS) if c.attention_bias else ()
  return (*weights.QWEN_EXPERTS, *weights.QK_NORMS, *biases)


MIXTRAL = dataclasses.replace(
  LLAMA, module=expert_decoder.ExpertDecoder, config=expert_decoder.Config, hf_prefix="Mixtral",
  config_keys=MIXTRAL_KEYS, defaults=MIXTRAL_DEFAULTS, read=reader(MIXTRAL_DEFAULTS, 8, _read_mixtral, theta=1e6),
  write=writer("mixtral", lambda c: dict(sliding_window=c.window)), weights=lambda c: weights.MIXTRAL,
  prefix={"": "model."}, irrelevant=LOSSES,
)  # fmt: skip
QWEN3_MOE = dataclasses.replace(
  MIXTRAL, hf_prefix="Qwen3Moe", config_keys=QWEN_KEYS, defaults=QWEN_DEFAULTS,
  read=reader(QWEN_DEFAULTS, 4, _read_qwen), write=writer("qwen3_moe", _write_qwen), weights=_qwen_weights,
  aliases=dict(num_local_experts="num_experts"), irrelevant=f"{LOSSES} intermediate_size max_window_layers",
  only=LLAMA.only | dict(decoder_sparse_step=(1,), mlp_only_layers=([],)),
)  # fmt: skip
