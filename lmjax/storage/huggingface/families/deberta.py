"""DeBERTa, versions 2 and 3."""

from typing import Any

from lmjax.models import deberta
from lmjax.storage.huggingface import weights
from lmjax.storage.huggingface.families.base import TO_HF, Family, HFConfig
from lmjax.storage.huggingface.families.bert import KEYS, read
from lmjax.storage.huggingface.weights import WeightMap
from lmjax.utils.errors import UserError
from lmjax.utils.fields import Fields

DISTANCES = WeightMap("distances/table", "encoder.rel_embeddings.weight", "Q D -> Q D")
# The head of version 3, which transformers writes with `legacy` false, computes the same under other names.
NEW_HEAD = {"dense.weight": "transform.dense.weight", "dense.bias": "transform.dense.bias", "bias": "bias"}
NEW_HEAD |= {"LayerNorm.weight": "transform.LayerNorm.weight", "LayerNorm.bias": "transform.LayerNorm.bias"}


def _read(fields: Fields) -> dict[str, Any]:
  read_bert = read(fields, 1536, 24)
  width, length = fields.integer("hidden_size", 1536), read_bert["length"]
  for key in ("embedding_size", "pooler_hidden_size"):
    if fields.integer(key, width) != width:
      raise UserError(f"{fields.where}: {key} {fields.integer(key)} must be hidden_size {width}")
  size = fields.integer("attention_head_size", read_bert["head_size"])
  if size != read_bert["head_size"]:
    raise UserError(f"{fields.where}: attention_head_size {size} must be {read_bert['head_size']}")
  kinds = fields.get("pos_att_type", None) or []
  kinds = [kind.strip() for kind in kinds.lower().split("|")] if isinstance(kinds, str) else kinds
  if not isinstance(kinds, list) or not all(kind in deberta.SCORES for kind in kinds):
    raise UserError(f"{fields.where}: pos_att_type is a list of {', '.join(deberta.SCORES)}")
  norms = [name.strip() for name in fields.text("norm_rel_ebd", "none").lower().split("|")]
  relative = fields.boolean("relative_attention", False)
  if set(norms) - {"none", "layer_norm"} or ("layer_norm" in norms and not relative):
    raise UserError(f"{fields.where}: norm_rel_ebd is none, or layer_norm with relative_attention")
  farthest, buckets = (fields.integer(key, -1, least=-1) for key in ("max_relative_positions", "position_buckets"))
  farthest = farthest if farthest > 0 else length
  if buckets == 1 or farthest < max(buckets, 0) // 2 + 2:
    raise UserError(
      f"{fields.where}: position_buckets {buckets} and max_relative_positions {farthest} are not supported: the second "
      "must be at least half of the first plus 2, and the first not 1"
    )
  return read_bert | dict(
    relative=relative, positions=fields.boolean("position_biased_input", True),
    scores=tuple(k for k in deberta.SCORES if k in kinds),
    buckets=max(buckets, 0), max_distance=farthest,
    shared_projections=fields.boolean("share_att_key", False), distance_norm="layer_norm" in norms,
  )  # fmt: skip


def _write(c: deberta.Config) -> HFConfig:
  return dict(
    model_type="deberta-v2", max_position_embeddings=c.length, hidden_act=TO_HF[c.activation],
    tie_word_embeddings=c.tie_embeddings, relative_attention=c.relative, pos_att_type=list(c.scores), legacy=True,
    position_biased_input=c.positions, position_buckets=c.buckets or -1, max_relative_positions=c.max_distance,
    share_att_key=c.shared_projections, norm_rel_ebd="layer_norm" if c.distance_norm else "none",
  )  # fmt: skip


def _weights(c: deberta.Config) -> tuple[WeightMap, ...]:
  own = {"c2p": weights.DISTANCE_KEY, "p2c": weights.DISTANCE_QUERY}
  return (
    *(weight for weight in weights.DEBERTA if c.positions or not weight.lmjax.startswith("positions")),
    *(weights.TYPES if c.token_types else ()),
    *((DISTANCES,) if c.relative else ()),
    *(weights.DISTANCE_NORM if c.distance_norm else ()),
    *(weight for kind in c.scores if c.relative and not c.shared_projections for weight in own[kind]),
  )


HEADS = {
  "masked_lm": weights.BERT_MASKED, "tokens": weights.classifier("tokens", "classifier"), "span": weights.SPAN,
  "sequence": weights.classifier("sequence", "classifier", "pooler.dense"),
  "choice": weights.classifier("choice", "classifier", "pooler.dense"),
}  # fmt: skip
DEBERTA = Family(
  module=deberta.DeBERTa, config=deberta.Config, hf_prefix="DebertaV2", bare_class="Model",
  config_keys={field: key for field, key in KEYS.items() if field != "token_types"},
  defaults=dict(
    vocab_size=128_100, hidden_size=1536, num_hidden_layers=24, num_attention_heads=24, intermediate_size=6144,
    layer_norm_eps=1e-7,
  ),
  read=lambda fields: _read(fields) | dict(token_types=fields.integer("type_vocab_size", 0, least=0)),
  write=lambda c: _write(c) | dict(type_vocab_size=c.token_types),
  weights=_weights, heads=lambda c: HEADS, prefix={"": "deberta."}, pooling="first", head_activation="gelu",
  unembed="cls.predictions.decoder.weight", unembed_bias="cls.predictions.decoder.bias",
  renamed={f"lm_predictions.lm_head.{new}": f"cls.predictions.{old}" for new, old in NEW_HEAD.items()},
  irrelevant="attention_probs_dropout_prob hidden_dropout_prob pooler_dropout cls_dropout legacy conv_act conv_groups",
  only=dict(is_encoder_decoder=(False,), conv_kernel_size=(0,), pooler_hidden_act=("gelu",), is_decoder=(False,)),
  ignore_suffixes=(
    "position_ids", "position_embeddings.weight",
    *(f"mask_predictions.{name}" for part in ("dense", "LayerNorm", "classifier")
      for name in (f"{part}.weight", f"{part}.bias")),
  ),
)  # fmt: skip
