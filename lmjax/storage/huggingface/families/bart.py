"""BART and Marian."""

import dataclasses
from typing import Any

from lmjax.models import bart
from lmjax.storage.huggingface import weights
from lmjax.storage.huggingface.families.base import TO_HF, Family, HFConfig, activation, head_size
from lmjax.utils.errors import UserError
from lmjax.utils.fields import Fields

KEYS = dict(
  vocabulary="vocab_size", width="d_model", depth="encoder_layers", heads="encoder_attention_heads",
  mlp="encoder_ffn_dim",
)  # fmt: skip
DEFAULTS = dict(
  vocab_size=50_265, d_model=1024, encoder_layers=12, encoder_attention_heads=16, encoder_ffn_dim=4096,
  decoder_start_token_id=2,
)  # fmt: skip


def _read(fields: Fields) -> dict[str, Any]:
  """Returns what BART and Marian share; both sides have layers of one shape here."""
  for key in ("ffn_dim", "attention_heads"):
    sizes = [fields.integer(f"{side}_{key}", DEFAULTS[f"encoder_{key}"], least=1) for side in ("encoder", "decoder")]
    if sizes[0] != sizes[1]:
      raise UserError(f"{fields.where}: encoder_{key} {sizes[0]} and decoder_{key} {sizes[1]} must be the same")
  width = fields.integer("d_model", DEFAULTS["d_model"], least=1)
  heads = fields.integer("encoder_attention_heads", DEFAULTS["encoder_attention_heads"])
  return dict(
    length=fields.integer("max_position_embeddings", 1024, least=1), head_size=head_size(fields, width, heads),
    decoder_depth=fields.integer("decoder_layers", 12, least=1),
    activation=activation(fields, "activation_function", "gelu"),
    scale_embedding=fields.boolean("scale_embedding", False),
    tie_embeddings=fields.boolean("tie_word_embeddings", True),
  )  # fmt: skip


def _read_bart(fields: Fields) -> dict[str, Any]:
  return _read(fields) | dict(positions="learned", embed_norm=True)


def _read_marian(fields: Fields) -> dict[str, Any]:
  size = fields.integer("vocab_size", MARIAN.defaults["vocab_size"], least=1)
  target = fields.integer("decoder_vocab_size", size, least=1)
  if target != size:
    raise UserError(f"{fields.where}: decoder_vocab_size {target} must be vocab_size {size}: one vocabulary for both")
  return _read(fields) | dict(positions="sinusoidal", embed_norm=False)


def _write(c: bart.Config) -> HFConfig:
  hf = dict(
    model_type="bart" if c.positions == "learned" else "marian", is_encoder_decoder=True,
    max_position_embeddings=c.length, decoder_layers=c.depth if c.decoder_depth is None else c.decoder_depth,
    decoder_ffn_dim=c.mlp, decoder_attention_heads=c.heads, activation_function=TO_HF[c.activation],
    scale_embedding=c.scale_embedding, tie_word_embeddings=c.tie_embeddings,
  )  # fmt: skip
  return hf if c.positions == "learned" else hf | dict(decoder_vocab_size=c.vocabulary)


def _bart_heads(c: bart.Config) -> dict[str, tuple[weights.WeightMap, ...]]:
  dense = ("classification_head.out_proj", "classification_head.dense")
  return {"span": weights.SPAN, "sequence": weights.classifier("sequence", *dense)}


_OLD = dict(normalize_before=(False,), add_final_layer_norm=(False,), add_bias_logits=(False,))
BART = Family(
  module=bart.Bart, config=bart.Config, hf_prefix="Bart", config_keys=KEYS,
  defaults=DEFAULTS, read=_read_bart, write=_write, heads=_bart_heads,
  weights=lambda c: weights.bart(True, True, c.decoder_depth != 0),
  prefix={"": "model."}, bare_class="ForConditionalGeneration",
  copies={"encoder.embed_tokens.weight": "shared.weight", "decoder.embed_tokens.weight": "shared.weight"},
  aliases=dict(
    hidden_size="d_model", num_attention_heads="encoder_attention_heads", num_hidden_layers="encoder_layers",
  ),
  irrelevant="""dropout attention_dropout activation_dropout encoder_layerdrop decoder_layerdrop init_std
  classif_dropout extra_pos_embeddings force_bos_token_to_be_generated save_step""",
  only=dict(
    is_decoder=(False,), is_encoder_decoder=(True,), normalize_embedding=(True,), static_position_embeddings=(False,),
  ) | _OLD,
)  # fmt: skip
MARIAN = dataclasses.replace(
  BART, hf_prefix="Marian", defaults=DEFAULTS | dict(vocab_size=58_101, decoder_start_token_id=58_100),
  read=_read_marian, heads=lambda c: {},
  initial=lambda c: dict.fromkeys(("pad_token_id", "decoder_start_token_id"), c.vocabulary - 1),
  weights=lambda c: weights.bart(False, False, c.decoder_depth != 0), bare_class="MTModel",
  ignore_suffixes=("embed_positions.weight",),
  only=dict(
    is_decoder=(False,), is_encoder_decoder=(True,), normalize_embedding=(False,), static_position_embeddings=(True,),
    share_encoder_decoder_embeddings=(True,),
  ) | _OLD,
)  # fmt: skip
