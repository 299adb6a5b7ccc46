"""GPT-1, GPT-2 and OPT."""

from typing import Any

from lmjax.models import decoder
from lmjax.storage.huggingface import weights
from lmjax.storage.huggingface.families.base import TO_HF, Family, HFConfig, activation, head_size
from lmjax.utils.errors import UserError
from lmjax.utils.fields import Fields

KEYS = dict(
  vocabulary="vocab_size", length="n_positions", width="n_embd", depth="n_layer", heads="n_head",
  epsilon="layer_norm_epsilon",
)  # fmt: skip
DEFAULTS = dict(vocab_size=40478, n_positions=512, n_embd=768, n_layer=12, n_head=12, layer_norm_epsilon=1e-5)
IRRELEVANT = """
  resid_pdrop embd_pdrop attn_pdrop summary_type summary_use_proj summary_activation summary_proj_to_labels
  summary_first_dropout summary_last_dropout n_ctx predict_special_tokens reorder_and_upcast_attn is_decoder
"""


def _read(fields: Fields) -> dict[str, Any]:
  width, heads = fields.integer("n_embd", 768), fields.integer("n_head", 12)
  return dict(
    kv_heads=heads, head_size=head_size(fields, width, heads), mlp=4 * width,
    tie_embeddings=fields.boolean("tie_word_embeddings", True),
  )  # fmt: skip


def _read_gpt1(fields: Fields) -> dict[str, Any]:
  names = {"relu": "relu", "silu": "silu", "gelu": "gelu_tanh", "swish": "silu"}  # its `gelu` is the approximation
  return _read(fields) | dict(activation=names[fields.text("afn", "gelu", tuple(names))], post_norm=True)


def _read_gpt2(fields: Fields) -> dict[str, Any]:
  read = _read(fields)
  return read | dict(
    mlp=fields.integer("n_inner", read["mlp"], least=1),
    activation=activation(fields, "activation_function", "gelu_new"),
    scale_scores=fields.boolean("scale_attn_weights", True),
    scale_by_layer=fields.boolean("scale_attn_by_inverse_layer_idx", False),
  )  # fmt: skip


def _write_gpt1(c: decoder.Config) -> HFConfig:
  name = "gelu" if c.activation == "gelu_tanh" else c.activation
  return dict(model_type="openai-gpt", afn=name, tie_word_embeddings=c.tie_embeddings)


def _write_gpt2(c: decoder.Config) -> HFConfig:
  return dict(
    model_type="gpt2", n_inner=c.mlp, activation_function=TO_HF[c.activation], tie_word_embeddings=c.tie_embeddings,
    scale_attn_weights=c.scale_scores, scale_attn_by_inverse_layer_idx=c.scale_by_layer,
  )  # fmt: skip


def _read_opt(fields: Fields) -> dict[str, Any]:
  width, heads = fields.integer("hidden_size", 768), fields.integer("num_attention_heads", 12)
  if fields.integer("word_embed_proj_dim", width) != width:
    raise UserError(f"{fields.where}: word_embed_proj_dim is not supported where it is not the width, {width}")
  after = not fields.boolean("do_layer_norm_before", True)
  if fields.boolean("_remove_final_layer_norm", False) and not after:
    raise UserError(f"{fields.where}: _remove_final_layer_norm is not supported")
  return dict(
    kv_heads=heads, head_size=head_size(fields, width, heads), position_offset=2, post_norm=after,
    activation=activation(fields, "activation_function", "relu"),
    tie_embeddings=fields.boolean("tie_word_embeddings", True),
  )  # fmt: skip


def _write_opt(c: decoder.Config) -> HFConfig:
  return dict(
    model_type="opt", activation_function=TO_HF[c.activation], tie_word_embeddings=c.tie_embeddings,
    do_layer_norm_before=not c.post_norm, word_embed_proj_dim=c.width,
  )  # fmt: skip


_gpt: dict[str, Any] = dict(
  module=decoder.Decoder, config=decoder.Config, config_keys=KEYS,
  prefix={"": "transformer."}, bare_class="LMHeadModel", irrelevant=IRRELEVANT,
  aliases=dict(
    hidden_size="n_embd", max_position_embeddings="n_positions", num_attention_heads="n_head",
    num_hidden_layers="n_layer",
  ),
  only=dict(is_encoder_decoder=(False,), add_cross_attention=(False,)),
  ignore_suffixes=("attn.bias", "attn.masked_bias", "position_ids"),
)  # fmt: skip
GPT1 = Family(
  **_gpt, hf_prefix="OpenAIGPT", defaults=DEFAULTS, read=_read_gpt1, write=_write_gpt1, weights=lambda c: weights.GPT1,
  heads=lambda c: {name: table for name, table in weights.decoder_heads("")(c).items() if name == "sequence"},
)  # fmt: skip
GPT2 = Family(
  **_gpt, heads=weights.decoder_heads("classifier"), hf_prefix="GPT2", read=_read_gpt2,
  defaults=DEFAULTS | dict(vocab_size=50257, n_positions=1024),
  write=_write_gpt2, weights=lambda c: weights.GPT2,
)  # fmt: skip
OPT = Family(
  module=decoder.Decoder, config=decoder.Config, hf_prefix="OPT",
  config_keys=dict(
    vocabulary="vocab_size", length="max_position_embeddings", width="hidden_size", depth="num_hidden_layers",
    heads="num_attention_heads", mlp="ffn_dim",
  ),
  defaults=dict(
    vocab_size=50_272, max_position_embeddings=2048, hidden_size=768, num_hidden_layers=12, num_attention_heads=12,
    ffn_dim=3072,
  ),
  read=_read_opt, write=_write_opt,
  weights=lambda c: weights.OPT if c.post_norm else (*weights.OPT, *weights.OPT_NORM),
  heads=lambda c: {name: table for name, table in weights.decoder_heads("")(c).items() if name != "tokens"},
  prefix={"": "model.decoder."},
  irrelevant="activation_dropout attention_dropout dropout init_std layerdrop",
  only=dict(
    is_encoder_decoder=(False,), enable_bias=(True,), layer_norm_elementwise_affine=(True,), is_decoder=(False, True),
  ),
)  # fmt: skip
