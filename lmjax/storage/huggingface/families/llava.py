"""LLaVA-1.5: Llama with a CLIP vision tower and a projector."""

import dataclasses
import re
from typing import Any

from lmjax.models import decoder, llava
from lmjax.storage.huggingface.families.base import ACTIVATIONS, TO_HF, Family, HFConfig
from lmjax.storage.huggingface.families.llama import LLAMA
from lmjax.storage.huggingface.weights import WeightMap
from lmjax.utils.fields import Fields

VISION_KEYS = dict(
  image="image_size", patch="patch_size", vision_depth="num_hidden_layers", vision_width="hidden_size",
  vision_heads="num_attention_heads", vision_mlp="intermediate_size",
)  # fmt: skip
VISION_DEFAULTS = dict(
  image_size=336, patch_size=14, num_hidden_layers=24, hidden_size=1024, num_attention_heads=16, intermediate_size=4096
)
VISION_ACTIVATIONS = ACTIVATIONS | {"quick_gelu": "quick_gelu"}
STRATEGIES = ("default", "full")
TEXT, TOWER, PROJECTOR = "language_model.", "vision_tower.vision_model.", "multi_modal_projector."
# How the parts are called since transformers 4.52, and what the published folders call them.
SPELLINGS = (
  (r"^model\.(vision_tower|multi_modal_projector)\.", r"\1."),
  (r"^model\.language_model\.(?!model\.|lm_head\.)", f"{TEXT}model."),
  (r"^lm_head\.", f"{TEXT}lm_head."),
  (r"^vision_tower\.(?!vision_model\.)", TOWER),
)


def spelling(name: str) -> str:
  """Returns the name of a tensor as the published folders have it."""
  for pattern, instead in SPELLINGS:
    name = re.sub(pattern, instead, name)
  return name


def _read(fields: Fields) -> dict[str, Any]:
  text, vision = fields.section("text_config", {}), fields.section("vision_config", {})
  text.text("model_type", "llama", ("llama",))
  vision.text("model_type", "clip_vision_model", ("clip_vision_model",))
  if "tie_word_embeddings" in fields:  # of either place
    text.values = text.values | {"tie_word_embeddings": fields.boolean("tie_word_embeddings")}
  language = LLAMA.from_hf(text)
  sizes = {name: vision.integer(key, VISION_DEFAULTS[key], least=1) for name, key in VISION_KEYS.items()}
  vision.integer("num_channels", 3, least=3, most=3)
  act, projector = vision.text("hidden_act", "quick_gelu", tuple(VISION_ACTIVATIONS)), tuple(ACTIVATIONS)
  image_token = fields.integer("image_token_index", fields.integer("image_token_id", 32_000))
  return {field.name: getattr(language, field.name) for field in dataclasses.fields(decoder.Config)} | sizes | dict(
    vision_activation=VISION_ACTIVATIONS[act], vision_epsilon=vision.number("layer_norm_eps", 1e-5, least=1e-30),
    vision_layer=fields.integer("vision_feature_layer", -2, least=-1000, most=1000),
    class_vector=fields.text("vision_feature_select_strategy", "default", STRATEGIES) == "full",
    projector_activation=ACTIVATIONS[fields.text("projector_hidden_act", "gelu", projector)],
    projector_bias=fields.boolean("multimodal_projector_bias", True), image_token=image_token,
  )  # fmt: skip


def _write(c: llava.Config) -> HFConfig:
  act = {**TO_HF, "quick_gelu": "quick_gelu"}[c.vision_activation]
  vision = {key: getattr(c, name) for name, key in VISION_KEYS.items()}
  vision |= dict(model_type="clip_vision_model", hidden_act=act, layer_norm_eps=c.vision_epsilon)
  return dict(
    text_config=LLAMA.to_hf(c), vision_config=vision, image_token_index=c.image_token, image_seq_length=c.vectors,
    vision_feature_layer=c.vision_layer, vision_feature_select_strategy=STRATEGIES[c.class_vector],
    projector_hidden_act=TO_HF[c.projector_activation], multimodal_projector_bias=c.projector_bias,
    tie_word_embeddings=c.tie_embeddings,
  )  # fmt: skip


def _affine(lmjax: str, hf: str, kernel: str, bias: str) -> tuple[WeightMap, ...]:
  return WeightMap(f"{lmjax}/kernel", f"{hf}.weight", kernel), WeightMap(f"{lmjax}/bias", f"{hf}.bias", bias)


def _norm(lmjax: str, hf: str) -> tuple[WeightMap, ...]:
  return WeightMap(f"{lmjax}/scale", f"{hf}.weight", "d -> d"), WeightMap(f"{lmjax}/bias", f"{hf}.bias", "d -> d")


_LAYERS, _LAYER = "vision/stack/layers", f"{TOWER}encoder.layers.{{}}"
# Letters in lower case are sizes of the vision transformer: see `vision_sizes`.
VISION = (
  WeightMap("vision/class_vector/table", f"{TOWER}embeddings.class_embedding", "d -> 1 d"),
  WeightMap("vision/project/kernel", f"{TOWER}embeddings.patch_embedding.weight", "d c p q -> (p q c) d"),
  WeightMap("vision/positions/table", f"{TOWER}embeddings.position_embedding.weight", "s d -> s d"),
  *_norm("vision/first_norm", f"{TOWER}pre_layrnorm"),
  *_norm("vision/last_norm", f"{TOWER}post_layernorm"),
  *_norm(f"{_LAYERS}/attention_norm", f"{_LAYER}.layer_norm1"),
  *_norm(f"{_LAYERS}/mlp_norm", f"{_LAYER}.layer_norm2"),
  *_affine(f"{_LAYERS}/attention/query", f"{_LAYER}.self_attn.q_proj", "(h k) d -> d h k", "(h k) -> h k"),
  *_affine(f"{_LAYERS}/attention/key", f"{_LAYER}.self_attn.k_proj", "(h k) d -> d h k", "(h k) -> h k"),
  *_affine(f"{_LAYERS}/attention/value", f"{_LAYER}.self_attn.v_proj", "(h k) d -> d h k", "(h k) -> h k"),
  *_affine(f"{_LAYERS}/attention/out", f"{_LAYER}.self_attn.out_proj", "d (h k) -> h k d", "d -> d"),
  *_affine(f"{_LAYERS}/mlp/up", f"{_LAYER}.mlp.fc1", "f d -> d f", "f -> f"),
  *_affine(f"{_LAYERS}/mlp/down", f"{_LAYER}.mlp.fc2", "d f -> f d", "d -> d"),
)


def _weights(c: llava.Config) -> tuple[WeightMap, ...]:
  text = (weight._replace(hf=f"{TEXT}model.{weight.hf}") for weight in LLAMA.weights(c))
  projector = (
    *_affine("vision/projector_in", f"{PROJECTOR}linear_1", "D d -> d D", "D -> D"),
    *_affine("vision/projector_out", f"{PROJECTOR}linear_2", "E D -> D E", "E -> E"),
  )
  biases = () if c.projector_bias else ("vision/projector_in/bias", "vision/projector_out/bias")
  return (*text, *VISION, *(weight for weight in projector if weight.lmjax not in biases))


def vision_sizes(c: llava.Config) -> dict[str, int]:
  """Returns the sizes of the vision transformer's axes."""
  sizes = dict(d=c.vision_width, h=c.vision_heads, k=c.vision_width // c.vision_heads, f=c.vision_mlp)
  return sizes | dict(c=3, p=c.patch, q=c.patch, s=c.patches + 1)


LLAVA = Family(
  module=llava.Llava, config=llava.Config, hf_prefix="Llava", config_keys={}, defaults={}, read=_read, write=_write,
  weights=_weights, heads=lambda c: {}, bare_class="ForConditionalGeneration", unembed=f"{TEXT}lm_head.weight",
  irrelevant="image_seq_length ignore_index vocab_size is_encoder_decoder", spelling=spelling,
  ignore_suffixes=("rotary_emb.inv_freq", "embeddings.position_ids"),
)  # fmt: skip
