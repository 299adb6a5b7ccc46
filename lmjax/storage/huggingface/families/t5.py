"""T5 in its versions 1.0 and 1.1, ByT5, and mT5."""

import dataclasses
from typing import Any

from lmjax.models import encoder_decoder
from lmjax.storage.huggingface import weights
from lmjax.storage.huggingface.families.base import ACTIVATIONS, Family, HFConfig
from lmjax.utils.errors import UserError
from lmjax.utils.fields import Fields

KEYS = dict(
  vocabulary="vocab_size", width="d_model", depth="num_layers", heads="num_heads", head_size="d_kv", mlp="d_ff",
  num_buckets="relative_attention_num_buckets", max_distance="relative_attention_max_distance",
  epsilon="layer_norm_epsilon",
)  # fmt: skip
DEFAULTS = dict(
  vocab_size=32_128, d_model=512, num_layers=6, num_heads=8, d_kv=64, d_ff=2048, relative_attention_num_buckets=32,
  relative_attention_max_distance=128, layer_norm_epsilon=1e-6,
)  # fmt: skip


def _read(fields: Fields, feed_forward: str = "relu", depth: int = 6) -> dict[str, Any]:
  name = fields.text("feed_forward_proj", feed_forward)
  *gate, act = name.split("-")
  if gate not in ([], ["gated"]):
    raise UserError(f"{fields.where}: feed_forward_proj {name!r} is not supported")
  act = fields.text("dense_act_fn", "gelu_new" if name == "gated-gelu" else act, tuple(ACTIVATIONS))
  if act not in ACTIVATIONS:
    raise UserError(f"{fields.where}: feed_forward_proj {name!r} is not supported")
  # Version 1.1 says with tie_word_embeddings that outputs are not scaled; which tables are tied, the tensors say.
  scale = fields.boolean("scale_decoder_outputs", fields.boolean("tie_word_embeddings", True))
  depth = fields.integer("num_layers", depth)
  fields.boolean("tie_word_embeddings", True)
  return dict(
    length=fields.integer("n_positions", 512, least=1), gated_mlp=fields.boolean("is_gated_act", bool(gate)),
    activation=ACTIVATIONS[act], scale_output=scale,
    decoder_depth=fields.integer("num_decoder_layers", depth, least=1),
  )  # fmt: skip


def _read_mt5(fields: Fields) -> dict[str, Any]:
  return _read(fields, "gated-gelu", 8) | dict(scale_output=False)


def _write(c: encoder_decoder.Config) -> HFConfig:
  name = {"gelu_tanh": "gelu" if c.gated_mlp else "gelu_new"}.get(c.activation, c.activation)
  if name == "gelu" and c.gated_mlp and c.activation == "gelu":
    name = "gelu_python"  # transformers takes gated-gelu for the approximation
  scale = c.tie_embeddings if c.scale_output is None else c.scale_output
  return dict(
    model_type="t5", is_encoder_decoder=c.decoder_depth != 0, num_decoder_layers=c.decoder_depth or c.depth,
    tie_word_embeddings=c.tie_embeddings, scale_decoder_outputs=scale,
    feed_forward_proj=("gated-" if c.gated_mlp else "") + name, is_gated_act=c.gated_mlp,
    dense_act_fn="gelu_new" if c.activation == "gelu_tanh" else c.activation, pad_token_id=0, eos_token_id=1,
    decoder_start_token_id=0,
  )  # fmt: skip


def _write_mt5(c: encoder_decoder.Config) -> HFConfig:
  hf = {key: value for key, value in _write(c).items() if key != "scale_decoder_outputs"}
  return hf | dict(model_type="mt5")


def _heads(c: encoder_decoder.Config) -> dict[str, tuple[weights.WeightMap, ...]]:
  if c.decoder_depth == 0:
    return {"tokens": weights.classifier("tokens", "classifier")}
  dense = ("classification_head.out_proj", "classification_head.dense")
  return {"span": weights.SPAN, "sequence": weights.classifier("sequence", *dense)}


T5 = Family(
  module=encoder_decoder.EncoderDecoder, config=encoder_decoder.Config, hf_prefix="T5", config_keys=KEYS,
  defaults=DEFAULTS, read=_read, write=_write, heads=_heads,
  weights=lambda c: weights.t5(c.gated_mlp, c.decoder_depth != 0),
  prefix={"sequence": "transformer.", "tokens": "transformer."}, bare_class="ForConditionalGeneration",
  copies={"encoder.embed_tokens.weight": "shared.weight", "decoder.embed_tokens.weight": "shared.weight"},
  aliases=dict(hidden_size="d_model", num_attention_heads="num_heads", num_hidden_layers="num_layers",
               head_dim="d_kv"),
  irrelevant="dropout_rate initializer_factor is_encoder_decoder output_past", only=dict(is_decoder=(False,)),
)  # fmt: skip
MT5 = dataclasses.replace(
  T5, hf_prefix="MT5", defaults=DEFAULTS | dict(vocab_size=250_112, num_layers=8, num_heads=6, d_ff=1024),
  read=_read_mt5, write=_write_mt5,
)  # fmt: skip
