"""config.json of published decoders: no key is unknown, and the model has the published number of parameters."""

import jax
import jax.numpy as jnp
import pytest

from lmjax.parallel.sharding import count_parameters
from lmjax.storage.huggingface.families import FAMILIES
from lmjax.utils.fields import Fields

COMMON = dict(
  attention_dropout=0.0, bos_token_id=1, eos_token_id=2, initializer_range=0.02, torch_dtype="bfloat16", use_cache=True,
  transformers_version="4.40.0",
)  # fmt: skip


def sizes(vocabulary, width, mlp, depth, heads, kv_heads, length, **more):
  return COMMON | dict(
    vocab_size=vocabulary, hidden_size=width, intermediate_size=mlp, num_hidden_layers=depth, num_attention_heads=heads,
    num_key_value_heads=kv_heads, max_position_embeddings=length,
  ) | more  # fmt: skip


GEMMA = dict(attention_bias=False, head_dim=256, rms_norm_eps=1e-6, rope_theta=1e4, pad_token_id=0)
GEMMA2 = GEMMA | dict(
  hidden_act="gelu_pytorch_tanh", hidden_activation="gelu_pytorch_tanh", cache_implementation="hybrid",
  query_pre_attn_scalar=256,
)  # fmt: skip
CONFIGS = {
  "SmolLM2-135M": (
    "llama", 134_515_008,
    sizes(49_152, 576, 1536, 30, 9, 3, 8192, attention_bias=False, hidden_act="silu", is_llama_config=True,
          pretraining_tp=1, rms_norm_eps=1e-5, rope_interleaved=False, rope_scaling=None, rope_theta=100_000,
          tie_word_embeddings=True, **{"transformers.js_config": {"dtype": "q4"}}),
  ),
  "TinyLlama-1.1B": (
    "llama", 1_100_048_384,
    sizes(32_000, 2048, 5632, 22, 32, 4, 2048, hidden_act="silu", pretraining_tp=1, rms_norm_eps=1e-5,
          rope_scaling=None, tie_word_embeddings=False),
  ),
  "Qwen3-0.6B": (
    "qwen3", 596_049_920,
    sizes(151_936, 1024, 3072, 28, 16, 8, 40_960, head_dim=128, attention_bias=False, hidden_act="silu",
          max_window_layers=28, rms_norm_eps=1e-6, rope_scaling=None, rope_theta=1_000_000, sliding_window=None,
          tie_word_embeddings=True, use_sliding_window=False),
  ),
  "granite-3.0-2b": (
    "granite", None,
    sizes(49_152, 2048, 8192, 40, 32, 8, 4096, attention_bias=False, attention_multiplier=0.015625,
          embedding_multiplier=12.0, hidden_act="silu", logits_scaling=8.0, mlp_bias=False, residual_multiplier=0.22,
          rms_norm_eps=1e-5, rope_scaling=None, rope_theta=10_000, tie_word_embeddings=True),
  ),
  "pythia-160m": (
    "gpt_neox", 162_322_944,
    {key: value for key, value in sizes(
      50_304, 768, 3072, 12, 12, 12, 2048, hidden_act="gelu", layer_norm_eps=1e-5, rotary_emb_base=10_000,
      rotary_pct=0.25, tie_word_embeddings=False, use_parallel_residual=True,
    ).items() if key != "num_key_value_heads"},
  ),
  "opt-125m": (
    "opt", 125_239_296,
    COMMON | dict(
      vocab_size=50_272, hidden_size=768, ffn_dim=3072, num_hidden_layers=12, num_attention_heads=12,
      max_position_embeddings=2048, _remove_final_layer_norm=False, activation_dropout=0.0, activation_function="relu",
      do_layer_norm_before=True, dropout=0.1, init_std=0.02, layerdrop=0.0, pad_token_id=1, prefix="</s>",
      word_embed_proj_dim=768,
    ),
  ),
  "phi-2": (
    "phi", 2_779_683_840,
    sizes(51_200, 2560, 10_240, 32, 32, 32, 2048, embd_pdrop=0.0, hidden_act="gelu_new", layer_norm_eps=1e-5,
          partial_rotary_factor=0.4, qk_layernorm=False, resid_pdrop=0.1, rope_scaling=None, rope_theta=1e4,
          tie_word_embeddings=False),
  ),
  "Phi-3-mini-128k": (
    "phi3", 3_821_079_552,
    sizes(32_064, 3072, 8192, 32, 32, 32, 131_072, attention_bias=False, auto_map={}, embd_pdrop=0.0, hidden_act="silu",
          original_max_position_embeddings=4096, resid_pdrop=0.0, rms_norm_eps=1e-5, sliding_window=262_144,
          rope_scaling=dict(type="longrope", short_factor=[1.05] * 48, long_factor=[1.08] * 48), rope_theta=1e4,
          tie_word_embeddings=False),
  ),
  "gemma-2b": (
    "gemma", 2_506_172_416, sizes(256_000, 2048, 16_384, 18, 8, 1, 8192, hidden_act="gelu", rope_scaling=None, **GEMMA),
  ),
  "gemma-2-2b": (
    "gemma2", 2_614_341_888,
    sizes(256_000, 2304, 9216, 26, 8, 4, 8192, attn_logit_softcapping=50.0, final_logit_softcapping=30.0,
          sliding_window=4096, **GEMMA2),
  ),
  "gemma-3-1b": (
    "gemma3_text", 999_885_952,
    sizes(262_144, 1152, 6912, 26, 4, 1, 32_768, attn_logit_softcapping=None, final_logit_softcapping=None,
          sliding_window=512, sliding_window_pattern=6, rope_local_base_freq=10_000, rope_scaling=None,
          **(GEMMA2 | dict(rope_theta=1_000_000))),
  ),
}  # fmt: skip


@pytest.mark.parametrize("name", CONFIGS)
def test_every_key_is_known_and_every_parameter_is_there(name, capsys):
  kind, count, keys = CONFIGS[name]
  family = FAMILIES[kind]
  config = family.from_hf(Fields(keys, f"{name}/config.json"))
  assert capsys.readouterr().err == ""
  model = family.module(config)
  shapes = jax.eval_shape(model.init, jax.random.key(0), {"inputs": jnp.zeros((1, 4), jnp.int32)})
  assert count is None or count_parameters(shapes) == count
