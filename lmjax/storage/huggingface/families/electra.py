"""ELECTRA and ALBERT: BERTs whose tokens have a smaller vector than the layers."""

import dataclasses
from typing import Any

from lmjax.models import encoder
from lmjax.storage.huggingface import weights
from lmjax.storage.huggingface.families import bert
from lmjax.storage.huggingface.families.base import TO_HF, HFConfig
from lmjax.storage.huggingface.weights import WeightMap
from lmjax.utils.fields import Fields


def _read_electra(fields: Fields) -> dict[str, Any]:
  width, embedding = fields.integer("hidden_size", 256), fields.integer("embedding_size", 128, least=1)
  read = bert.read(fields, width, 4)
  return read | dict(pooler=False, embedding=None if embedding == width else embedding)


def _read_albert(fields: Fields) -> dict[str, Any]:
  read = bert.read(fields, 4096, 64, "gelu_new")
  return read | dict(embedding=fields.integer("embedding_size", 128, least=1), shared_layers=True)


def _write(c: encoder.Config) -> HFConfig:
  return dict(
    model_type="albert" if c.shared_layers else "electra", max_position_embeddings=c.length,
    hidden_act=TO_HF[c.activation], embedding_size=c.embedding or c.width, tie_word_embeddings=c.tie_embeddings,
  )  # fmt: skip


def _electra_heads(c: encoder.Config) -> dict[str, tuple[WeightMap, ...]]:
  generator, discriminator = "generator_predictions", "discriminator_predictions"
  return {
    "masked_lm": weights.masked(f"{generator}.dense", f"{generator}.LayerNorm", "generator_lm_head.bias"),
    "replaced": weights.classifier("replaced", f"{discriminator}.dense_prediction", f"{discriminator}.dense"),
    "sequence": weights.classifier("sequence", "classifier.out_proj", "classifier.dense"),
    "tokens": weights.classifier("tokens", "classifier"), "span": weights.SPAN,
    "choice": weights.classifier("choice", "classifier", "sequence_summary.summary"),
  }  # fmt: skip


def _albert_heads(c: encoder.Config) -> dict[str, tuple[WeightMap, ...]]:
  """As with BERT, the classifier of tokens does not need the pooler."""
  heads = {"masked_lm": weights.masked("predictions.dense", "predictions.LayerNorm", "predictions.bias")}
  heads |= {"next_sentence": weights.pairs("sop_classifier.classifier"), "span": weights.SPAN}
  labels = ("sequence", "tokens", "choice") if c.pooler else ("tokens",)
  return heads | {head: weights.classifier(head, "classifier") for head in labels}


ELECTRA = dataclasses.replace(
  bert.BERT, hf_prefix="Electra",
  defaults=bert.DEFAULTS | dict(hidden_size=256, num_attention_heads=4, intermediate_size=1024),
  read=_read_electra, write=_write, heads=_electra_heads, prefix={"": "electra."}, pooling="first",
  weights=lambda c: (*weights.BERT, *weights.TYPES, *(weights.ELECTRA_PROJECTION if c.embedding else ())),
  masked_activation="gelu", head_activation="gelu",
  irrelevant="""attention_probs_dropout_prob hidden_dropout_prob summary_type summary_use_proj summary_activation
  summary_last_dropout""",
  unembed="generator_lm_head.weight", unembed_bias="",
)  # fmt: skip
ALBERT = dataclasses.replace(
  bert.BERT, hf_prefix="Albert",
  defaults=bert.DEFAULTS | dict(
    vocab_size=30_000, hidden_size=4096, num_attention_heads=64, intermediate_size=16_384,
  ),
  read=_read_albert, write=_write, heads=_albert_heads, prefix={"": "albert."},
  weights=lambda c: (*weights.ALBERT, *(weights.pooler("pooler") if c.pooler else ())),
  irrelevant="""attention_probs_dropout_prob hidden_dropout_prob classifier_dropout_prob net_structure_type gap_size
  num_memory_blocks down_scale_factor layers_to_keep""",
  only=bert.BERT.only | dict(num_hidden_groups=(1,), inner_group_num=(1,)),
  unembed="predictions.decoder.weight", unembed_bias="predictions.decoder.bias",
)  # fmt: skip
