"""BERT, RoBERTa with XLM-R and CamemBERT, and DistilBERT."""

import dataclasses
from typing import Any

from lmjax.models import encoder
from lmjax.storage.huggingface import weights
from lmjax.storage.huggingface.families.base import TO_HF, Family, HFConfig, activation, head_size
from lmjax.storage.huggingface.weights import WeightMap
from lmjax.utils.errors import UserError
from lmjax.utils.fields import Fields

KEYS = dict(
  vocabulary="vocab_size", width="hidden_size", depth="num_hidden_layers", heads="num_attention_heads",
  mlp="intermediate_size", epsilon="layer_norm_eps", token_types="type_vocab_size",
)  # fmt: skip
DEFAULTS = dict(
  vocab_size=30_522, hidden_size=768, num_hidden_layers=12, num_attention_heads=12, intermediate_size=3072,
  layer_norm_eps=1e-12, type_vocab_size=2,
)  # fmt: skip
IRRELEVANT = """
  attention_probs_dropout_prob hidden_dropout_prob directionality pooler_fc_size pooler_num_attention_heads
  pooler_num_fc_layers pooler_size_per_head pooler_type
"""


def read(fields: Fields, width: int = 768, heads: int = 12, default: str = "gelu") -> dict[str, Any]:
  """Returns the fields of the lmjax config that `config_keys` does not name; the arguments are defaults."""
  width, heads = fields.integer("hidden_size", width), fields.integer("num_attention_heads", heads)
  return dict(
    length=fields.integer("max_position_embeddings", 512, least=1), head_size=head_size(fields, width, heads),
    activation=activation(fields, "hidden_act", default), tie_embeddings=fields.boolean("tie_word_embeddings", True),
  )  # fmt: skip


def _read_roberta(fields: Fields) -> dict[str, Any]:
  values, offset = read(fields), fields.integer("pad_token_id", 1) + 1
  if offset >= values["length"]:
    raise UserError(f"{fields.where}: max_position_embeddings must be more than pad_token_id + 1, {offset}")
  return values | dict(length=values["length"] - offset, offset=offset)


def _read_distilbert(fields: Fields) -> dict[str, Any]:
  width, heads = fields.integer("dim", 768), fields.integer("n_heads", 12)
  return dict(
    token_types=0, pooler=False, head_size=head_size(fields, width, heads),
    activation=activation(fields, "activation", "gelu"), tie_embeddings=fields.boolean("tie_word_embeddings", True),
  )  # fmt: skip


def _write_bert(c: encoder.Config) -> HFConfig:
  return dict(
    model_type="roberta" if c.offset else "bert", max_position_embeddings=c.length + c.offset,
    hidden_act=TO_HF[c.activation], pad_token_id=max(c.offset - 1, 0), tie_word_embeddings=c.tie_embeddings,
  )  # fmt: skip


def _write_distilbert(c: encoder.Config) -> HFConfig:
  return dict(model_type="distilbert", activation=TO_HF[c.activation], tie_word_embeddings=c.tie_embeddings)


def _bert_heads(c: encoder.Config) -> dict[str, tuple[WeightMap, ...]]:
  """Classifiers of sequences, tokens and choices have the same tensors; that of tokens does not need the pooler."""
  heads = {
    "masked_lm": weights.BERT_MASKED,
    "next_sentence": weights.pairs("cls.seq_relationship"),
    "span": weights.SPAN,
  }
  labels = ("sequence", "tokens", "choice") if c.pooler else ("tokens",)
  return heads | {head: weights.classifier(head, "classifier") for head in labels}


def _roberta_heads(c: encoder.Config) -> dict[str, tuple[WeightMap, ...]]:
  """Only the classifier of choices takes the pooler."""
  heads = {
    "masked_lm": weights.ROBERTA_MASKED, "span": weights.SPAN, "tokens": weights.classifier("tokens", "classifier"),
    "sequence": weights.classifier("sequence", "classifier.out_proj", "classifier.dense"),
  }  # fmt: skip
  return heads | ({"choice": weights.classifier("choice", "classifier")} if c.pooler else {})


_encoder: dict[str, Any] = dict(module=encoder.Encoder, config=encoder.Config, bare_class="Model")
BERT = Family(
  **_encoder, hf_prefix="Bert", config_keys=KEYS, defaults=DEFAULTS, read=read, write=_write_bert,
  weights=lambda c: (*weights.BERT, *weights.TYPES, *(weights.pooler("pooler.dense") if c.pooler else ())),
  heads=_bert_heads, prefix={"": "bert."}, pooling="pooled", irrelevant=IRRELEVANT,
  unembed="cls.predictions.decoder.weight", unembed_bias="cls.predictions.decoder.bias",
  only=dict(
    is_decoder=(False,), add_cross_attention=(False,), is_encoder_decoder=(False,),
    position_embedding_type=("absolute",),
  ),
  ignore_suffixes=("position_ids", "token_type_ids"),
)  # fmt: skip
ROBERTA = dataclasses.replace(
  BERT, hf_prefix="Roberta", defaults=DEFAULTS | dict(vocab_size=50_265), read=_read_roberta,
  prefix={"": "roberta."}, pooling="first",
  masked_activation="gelu",
  heads=_roberta_heads,
  unembed="lm_head.decoder.weight", unembed_bias="lm_head.decoder.bias",
)  # fmt: skip
XLM_ROBERTA = dataclasses.replace(ROBERTA, hf_prefix="XLMRoberta", defaults=DEFAULTS)
CAMEMBERT = dataclasses.replace(ROBERTA, hf_prefix="Camembert", defaults=DEFAULTS)
DISTILBERT = Family(
  **_encoder, hf_prefix="DistilBert",
  config_keys=dict(
    vocabulary="vocab_size", length="max_position_embeddings", width="dim", depth="n_layers", heads="n_heads",
    mlp="hidden_dim",
  ),
  defaults=dict(vocab_size=30_522, max_position_embeddings=512, dim=768, n_layers=6, n_heads=12, hidden_dim=3072),
  aliases=dict(hidden_size="dim", num_attention_heads="n_heads", num_hidden_layers="n_layers"),
  read=_read_distilbert, write=_write_distilbert, weights=lambda c: weights.DISTILBERT, prefix={"": "distilbert."},
  pooling="first", head_activation="relu",
  heads=lambda c: {
    "masked_lm": weights.DISTILBERT_MASKED, "span": weights.SPAN,
    "sequence": weights.classifier("sequence", "classifier", "pre_classifier"),
    "tokens": weights.classifier("tokens", "classifier"),
    "choice": weights.classifier("choice", "classifier", "pre_classifier"),
  },
  unembed="vocab_projector.weight",
  # Sinusoids are stored in the table of positions like learned ones.
  irrelevant="attention_dropout dropout qa_dropout seq_classif_dropout sinusoidal_pos_embds tie_weights_",
  only=dict(is_encoder_decoder=(False,)), ignore_suffixes=("position_ids",),
)  # fmt: skip
