"""ModernBERT."""

from typing import Any

from lmjax.models import modernbert
from lmjax.storage.huggingface.families import rope
from lmjax.storage.huggingface.families.base import TO_HF, Family, HFConfig, activation, head_size
from lmjax.storage.huggingface.families.llama import LAYER_TYPES, layer_windows
from lmjax.storage.huggingface.weights import WeightMap
from lmjax.utils.errors import UserError
from lmjax.utils.fields import Fields

GLOBAL = dict(theta=160_000.0, theta_key="global_rope_theta", part="full_attention")
LOCAL = dict(theta=10_000.0, theta_key="local_rope_theta", part="sliding_attention")


def _read(fields: Fields) -> dict[str, Any]:
  width, heads = fields.integer("hidden_size", 768), fields.integer("num_attention_heads", 12)
  depth, length = fields.integer("num_hidden_layers", 22), fields.integer("max_position_embeddings", 8192, least=1)
  size, every = head_size(fields, width, heads), fields.integer("global_attn_every_n_layers", 3, least=1)
  local = fields.integer("local_attention", 128, least=0)
  unknown = [key for key in fields.section("rope_parameters", {}).values if key not in (GLOBAL["part"], LOCAL["part"])]
  if unknown:
    raise UserError(f"{fields.where}: rope_parameters: {unknown[0]} is not the name of a kind of layers")
  windows = layer_windows(fields, depth, local // 2 + 1, [i % every > 0 for i in range(depth)])
  return dict(
    head_size=size, length=length, activation=activation(fields, "hidden_activation", "gelu"), reach=local // 2,
    rotary=rope.read(fields, length, size, **GLOBAL), window_rotary=rope.read(fields, length, size, **LOCAL),
    window_layers=windows["window_layers"] or (tuple(range(depth)) if windows["window"] else ()),
    tie_embeddings=fields.boolean("tie_word_embeddings", True),
  )  # fmt: skip


def _write(c: modernbert.Config) -> HFConfig:
  return dict(
    model_type="modernbert", hidden_activation=TO_HF[c.activation], max_position_embeddings=c.length,
    local_attention=2 * c.reach, layer_types=[LAYER_TYPES[i in c.window_layers] for i in range(c.depth)],
    rope_parameters=dict(full_attention=rope.write(c.rotary), sliding_attention=rope.write(c.window_rotary)),
    tie_word_embeddings=c.tie_embeddings,
  )  # fmt: skip


def _layer(i: int) -> tuple[WeightMap, ...]:
  """Returns the table of a layer; the first has no norm before its attention."""
  path, layer = f"layers_{i}", f"layers.{i}"
  norm = (WeightMap(f"{path}/attention_norm/scale", f"{layer}.attn_norm.weight", "D -> D"),) if i else ()
  return (
    *norm,
    WeightMap(f"{path}/attention/{{query,key,value}}/kernel", f"{layer}.attn.Wqkv.weight", "(3 H K) D -> 3 D H K"),
    WeightMap(f"{path}/attention/out/kernel", f"{layer}.attn.Wo.weight", "D (H K) -> H K D"),
    WeightMap(f"{path}/mlp_norm/scale", f"{layer}.mlp_norm.weight", "D -> D"),
    WeightMap(f"{path}/mlp/{{gate,up}}/kernel", f"{layer}.mlp.Wi.weight", "F D -> D F | F D -> D F"),
    WeightMap(f"{path}/mlp/down/kernel", f"{layer}.mlp.Wo.weight", "D F -> F D"),
  )


def _weights(c: modernbert.Config) -> tuple[WeightMap, ...]:
  return (
    WeightMap("embed/table", "embeddings.tok_embeddings.weight", "V D -> V D"),
    WeightMap("embed_norm/scale", "embeddings.norm.weight", "D -> D"),
    WeightMap("norm/scale", "final_norm.weight", "D -> D"),
    *(weight for i in range(c.depth) for weight in _layer(i)),
  )


MASKED = (
  WeightMap("masked_lm/dense/kernel", "head.dense.weight", "R D -> D R"),
  WeightMap("masked_lm/norm/scale", "head.norm.weight", "R -> R"),
  WeightMap("masked_lm/bias", "decoder.bias", "V -> V"),
)
MODERNBERT = Family(
  module=modernbert.ModernBERT, config=modernbert.Config, hf_prefix="ModernBert", bare_class="Model",
  config_keys=dict(
    vocabulary="vocab_size", width="hidden_size", depth="num_hidden_layers", heads="num_attention_heads",
    mlp="intermediate_size", epsilon="norm_eps",
  ),
  defaults=dict(
    vocab_size=50_368, hidden_size=768, num_hidden_layers=22, num_attention_heads=12, intermediate_size=1152,
    norm_eps=1e-5,
  ),
  read=_read, write=_write, weights=_weights, heads=lambda c: {"masked_lm": MASKED}, prefix={"": "model."},
  masked_activation="gelu", unembed="decoder.weight", pooling="first",
  irrelevant="""attention_dropout embedding_dropout mlp_dropout classifier_pooling deterministic_flash_attn
  initializer_cutoff_factor layer_norm_eps position_embedding_type reference_compile repad_logits_with_grad
  sparse_pred_ignore_index sparse_prediction""",
  only=dict(
    attention_bias=(False,), mlp_bias=(False,), norm_bias=(False,), classifier_bias=(False,), decoder_bias=(True,),
    classifier_activation=("gelu",), rope_scaling=(), is_decoder=(False,), is_encoder_decoder=(False,),
  ),
)  # fmt: skip
