"""The model families of Hugging Face that lmjax reads and writes: their configs, tensor names and heads."""

import dataclasses
from collections.abc import Callable, Iterable
from typing import Any

from lmjax.layers.positions import Rotary
from lmjax.models import decoder, encoder, encoder_decoder
from lmjax.storage.huggingface import weights
from lmjax.storage.huggingface.weights import WeightMap
from lmjax.utils.errors import UserError

HFConfig = dict[str, Any]

ACTIVATIONS = {
  "gelu": "gelu", "gelu_new": "gelu_tanh", "gelu_pytorch_tanh": "gelu_tanh", "relu": "relu", "silu": "silu",
  "swish": "silu",
}  # fmt: skip
TO_HF = {"gelu": "gelu", "gelu_tanh": "gelu_new", "relu": "relu", "silu": "silu"}
# The heads of a model and the ending of its class name; of those whose heads a model has, the first is taken.
CLASSES = (
  ("sequence", "ForSequenceClassification"), ("tokens", "ForTokenClassification"), ("span", "ForQuestionAnswering"),
  ("masked_lm next_sentence", "ForPreTraining"), ("masked_lm", "ForMaskedLM"),
  ("next_sentence", "ForNextSentencePrediction"),
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Family:
  """One `model_type` of Hugging Face.

  module, config: the lmjax classes of the model.
  hf_prefix: the beginning of its class names, `Llama` of `LlamaForCausalLM`.
  config_keys: {field of the lmjax config: key of config.json}, for values that both have.
  read: returns the other fields of the lmjax config from config.json; `write` is its inverse.
  weights: returns the table of the model without heads.
  heads: returns {head: table} for the heads that the family can have.
  extra_weights: returns the table of parameters of the model whose tensors do not take the `prefix`.
  prefix: {head: beginning of the model's tensor names under that head}; "" is any other head.
  bare_class: the ending of the class name of a model without heads.
  head_activation: of the dense layer in a classification head, where it has one.
  pooling: the vector that a sequence classifier takes; see tasks.encode.Encode.
  ignore_suffixes: endings of the names of tensors that are copies or constants, and are not read.
  """

  module: type
  config: type
  hf_prefix: str
  config_keys: dict[str, str]
  read: Callable[[HFConfig], dict[str, Any]]
  write: Callable[[Any], HFConfig]
  weights: Callable[[Any], tuple[WeightMap, ...]]
  heads: Callable[[Any], dict[str, tuple[WeightMap, ...]]]
  extra_weights: Callable[[Any], tuple[WeightMap, ...]] = lambda config: ()
  prefix: dict[str, str] = dataclasses.field(default_factory=dict)
  bare_class: str = "ForCausalLM"
  head_activation: str = "tanh"
  pooling: str = "last"
  ignore_suffixes: tuple[str, ...] = ()

  def architecture(self, heads: Iterable[str]) -> str:
    """Returns the name of the Hugging Face class with these heads."""
    return self.hf_prefix + next((name for head, name in CLASSES if set(head.split()) <= set(heads)), self.bare_class)

  def prefix_under(self, heads: Iterable[str]) -> str:
    """Returns the beginning of the model's tensor names under these heads; empty for a class without a head."""
    if not heads and self.bare_class == "Model":
      return ""
    return next((self.prefix[head] for head in heads if head in self.prefix), self.prefix.get("", ""))

  def from_hf(self, hf: HFConfig) -> Any:
    """Returns the lmjax config of a config.json.

    Raises:
      UserError: a key is missing, or lmjax does not support its value.
    """
    try:
      shape = {field: hf[name] for field, name in self.config_keys.items()}
      return self.config(**(shape | self.read(hf)))
    except KeyError as error:
      raise UserError(f"config.json of a {hf.get('model_type')} model has no key {error}") from error
    except (ValueError, TypeError) as error:
      raise UserError(f"config.json of a {hf.get('model_type')} model is not supported: {error}") from error

  def to_hf(self, config: Any) -> HFConfig:
    """Returns the config.json of an lmjax config."""
    return {name: getattr(config, field) for field, name in self.config_keys.items()} | self.write(config)


def _activation(name: str) -> str:
  if name not in ACTIVATIONS:
    raise ValueError(f"the activation {name!r}")
  return ACTIVATIONS[name]


GPT_KEYS = dict(
  vocabulary="vocab_size", length="n_positions", width="n_embd", depth="n_layer", heads="n_head",
  epsilon="layer_norm_epsilon",
)  # fmt: skip


def _read_gpt(c: HFConfig) -> dict[str, Any]:
  name = c.get("activation_function", c.get("afn", "gelu_new"))
  return dict(
    kv_heads=c["n_head"], head_size=c["n_embd"] // c["n_head"], mlp=c.get("n_inner") or 4 * c["n_embd"],
    activation="gelu_tanh" if name == "gelu" and "afn" in c else _activation(name), post_norm=c["model_type"] != "gpt2",
  )  # fmt: skip


def _write_gpt2(c: decoder.Config) -> HFConfig:
  return dict(model_type="gpt2", n_inner=c.mlp, activation_function=TO_HF[c.activation], tie_word_embeddings=True)


def _write_gpt1(c: decoder.Config) -> HFConfig:
  return dict(model_type="openai-gpt", afn="gelu" if c.activation == "gelu_tanh" else c.activation)


LLAMA_KEYS = dict(
  vocabulary="vocab_size", length="max_position_embeddings", width="hidden_size", depth="num_hidden_layers",
  heads="num_attention_heads", mlp="intermediate_size", epsilon="rms_norm_eps",
)  # fmt: skip


def _read_llama(c: HFConfig) -> dict[str, Any]:
  rope = c.get("rope_parameters") or (c.get("rope_scaling") or {}) | {"rope_theta": c.get("rope_theta", 10_000.0)}
  kind = rope.get("rope_type", rope.get("type", "default"))
  if kind not in ("default", "linear", "llama3"):
    raise ValueError(f"rotary positions of type {kind!r}")
  rotary = Rotary(
    base=float(rope["rope_theta"]), scaling="none" if kind == "default" else kind, factor=rope.get("factor", 1.0),
    low=rope.get("low_freq_factor", 1.0), high=rope.get("high_freq_factor", 4.0),
    original=rope.get("original_max_position_embeddings", 8192),
  )  # fmt: skip
  windowed = c["model_type"] == "mistral" or c.get("use_sliding_window")
  return dict(
    kv_heads=c.get("num_key_value_heads") or c["num_attention_heads"],
    head_size=c.get("head_dim") or c["hidden_size"] // c["num_attention_heads"],
    activation=_activation(c["hidden_act"]), gated_mlp=True, norm="rms", bias=bool(c.get("attention_bias", False)),
    qkv_bias=c["model_type"] == "qwen2", tie_embeddings=bool(c.get("tie_word_embeddings", False)), rotary=rotary,
    window=c.get("sliding_window") if windowed else None,
  )  # fmt: skip


def _write_llama(c: decoder.Config) -> HFConfig:
  kind = "qwen2" if c.qkv_bias else "mistral" if c.window else "llama"
  rope = {"rope_theta": c.rotary.base, "rope_type": "default" if c.rotary.scaling == "none" else c.rotary.scaling}
  if c.rotary.scaling != "none":
    rope |= {"factor": c.rotary.factor}
  if c.rotary.scaling == "llama3":
    rope |= dict(
      low_freq_factor=c.rotary.low, high_freq_factor=c.rotary.high, original_max_position_embeddings=c.rotary.original
    )
  return dict(
    model_type=kind, num_key_value_heads=c.kv_heads, head_dim=c.head_size, hidden_act=TO_HF[c.activation],
    tie_word_embeddings=c.tie_embeddings, rope_parameters=rope, sliding_window=c.window,
  )  # fmt: skip


def _untied(c: decoder.Config | encoder_decoder.Config) -> tuple[WeightMap, ...]:
  return () if c.tie_embeddings else weights.UNTIED


BERT_KEYS = dict(
  vocabulary="vocab_size", width="hidden_size", depth="num_hidden_layers", heads="num_attention_heads",
  mlp="intermediate_size", epsilon="layer_norm_eps", token_types="type_vocab_size",
)  # fmt: skip


def _read_bert(c: HFConfig) -> dict[str, Any]:
  offset = c.get("pad_token_id", 1) + 1 if c["model_type"] == "roberta" else 0
  return dict(
    length=c["max_position_embeddings"] - offset, offset=offset, activation=_activation(c["hidden_act"]),
    head_size=c["hidden_size"] // c["num_attention_heads"],
  )  # fmt: skip


def _write_bert(c: encoder.Config) -> HFConfig:
  return dict(
    model_type="roberta" if c.offset else "bert", max_position_embeddings=c.length + c.offset,
    hidden_act=TO_HF[c.activation], pad_token_id=max(c.offset - 1, 0),
  )  # fmt: skip


def _bert_heads(c: encoder.Config) -> dict[str, tuple[WeightMap, ...]]:
  """Sequence and token classifiers have the same tensors; only the first needs the pooler."""
  heads = {"masked_lm": weights.BERT_MASKED, "next_sentence": weights.BERT_PAIRS, "span": weights.SPAN}
  labels = ("sequence", "tokens") if c.pooler else ("tokens",)
  return heads | {head: weights.classifier(head, "classifier") for head in labels}


def _read_distilbert(c: HFConfig) -> dict[str, Any]:
  return dict(token_types=0, pooler=False, head_size=c["dim"] // c["n_heads"], activation=_activation(c["activation"]))


T5_KEYS = dict(
  vocabulary="vocab_size", width="d_model", depth="num_layers", heads="num_heads", head_size="d_kv", mlp="d_ff",
  num_buckets="relative_attention_num_buckets", max_distance="relative_attention_max_distance",
  epsilon="layer_norm_epsilon",
)  # fmt: skip


def _read_t5(c: HFConfig) -> dict[str, Any]:
  gate, _, name = c.get("feed_forward_proj", "relu").rpartition("-")
  if c.get("num_decoder_layers") not in (None, c["num_layers"]):
    raise ValueError("num_decoder_layers other than num_layers")
  tie = c.get("scale_decoder_outputs", c.get("tie_word_embeddings", True))
  activation = "gelu_tanh" if gate and name == "gelu" else _activation(name)
  return dict(length=c.get("n_positions", 512), gated_mlp=bool(gate), activation=activation, tie_embeddings=bool(tie))


def _write_t5(c: encoder_decoder.Config) -> HFConfig:
  name = {"gelu_tanh": "gelu" if c.gated_mlp else "gelu_new"}.get(c.activation, c.activation)
  return dict(
    model_type="t5", is_encoder_decoder=True, num_decoder_layers=c.depth, tie_word_embeddings=c.tie_embeddings,
    scale_decoder_outputs=c.tie_embeddings, feed_forward_proj=("gated-" if c.gated_mlp else "") + name, pad_token_id=0,
    eos_token_id=1, decoder_start_token_id=0,
  )  # fmt: skip


def _decoder_heads(tokens: str) -> Callable[[Any], dict[str, tuple[WeightMap, ...]]]:
  """Returns the heads of a decoder; `tokens` is the name of the token classifier's tensors."""
  heads = {"tokens": weights.classifier("tokens", tokens), "span": weights.SPAN}
  heads["sequence"] = weights.classifier("sequence", "score", bias=False)
  return lambda c: heads


_gpt = dict(
  module=decoder.Decoder, config=decoder.Config, config_keys=GPT_KEYS, read=_read_gpt,
  heads=_decoder_heads("classifier"),
  prefix={"": "transformer."}, bare_class="LMHeadModel",
)  # fmt: skip
_llama = Family(
  module=decoder.Decoder, config=decoder.Config, hf_prefix="Llama", config_keys=LLAMA_KEYS, read=_read_llama,
  write=_write_llama,
  weights=lambda c: (*weights.LLAMA, *(weights.QWEN2_BIASES if c.qkv_bias else ())), heads=_decoder_heads("score"),
  extra_weights=_untied, prefix={"": "model.", "span": "transformer."},
  ignore_suffixes=("rotary_emb.inv_freq", "lm_head.weight"),
)  # fmt: skip
_encoder = dict(module=encoder.Encoder, config=encoder.Config, bare_class="Model")
_bert = Family(
  **_encoder, hf_prefix="Bert", config_keys=BERT_KEYS, read=_read_bert, write=_write_bert,
  weights=lambda c: (*weights.BERT, *weights.TYPES, *(weights.POOLER if c.pooler else ())), heads=_bert_heads,
  prefix={"": "bert."}, pooling="pooled",
  ignore_suffixes=("position_ids", "cls.predictions.decoder.weight", "cls.predictions.decoder.bias"),
)  # fmt: skip

FAMILIES: dict[str, Family] = {
  "openai-gpt": Family(
    **_gpt, hf_prefix="OpenAIGPT", write=_write_gpt1, weights=lambda c: weights.GPT1,
    ignore_suffixes=("attn.bias", "attn.masked_bias", "lm_head.weight", "position_ids"),
  ),
  "gpt2": Family(
    **_gpt, hf_prefix="GPT2", write=_write_gpt2, weights=lambda c: weights.GPT2,
    ignore_suffixes=("attn.bias", "attn.masked_bias", "lm_head.weight"),
  ),
  "llama": _llama,
  "mistral": dataclasses.replace(_llama, hf_prefix="Mistral", prefix={"": "model."}),
  "qwen2": dataclasses.replace(_llama, hf_prefix="Qwen2"),
  "bert": _bert,
  "roberta": dataclasses.replace(
    _bert, hf_prefix="Roberta", prefix={"": "roberta."}, pooling="first",
    heads=lambda c: {
      "masked_lm": weights.ROBERTA_MASKED, "span": weights.SPAN, "tokens": weights.classifier("tokens", "classifier"),
      "sequence": weights.classifier("sequence", "classifier.out_proj", "classifier.dense"),
    },
    ignore_suffixes=("position_ids", "lm_head.decoder.weight", "lm_head.decoder.bias"),
  ),
  "distilbert": Family(
    **_encoder, hf_prefix="DistilBert",
    config_keys=dict(
      vocabulary="vocab_size", length="max_position_embeddings", width="dim", depth="n_layers", heads="n_heads",
      mlp="hidden_dim",
    ),
    read=_read_distilbert, write=lambda c: dict(model_type="distilbert", activation=TO_HF[c.activation]),
    weights=lambda c: weights.DISTILBERT, prefix={"": "distilbert."}, pooling="first", head_activation="relu",
    heads=lambda c: {
      "masked_lm": weights.DISTILBERT_MASKED, "span": weights.SPAN,
      "sequence": weights.classifier("sequence", "classifier", "pre_classifier"),
      "tokens": weights.classifier("tokens", "classifier"),
    },
    ignore_suffixes=("vocab_projector.weight", "position_ids"),
  ),
  "t5": Family(
    module=encoder_decoder.EncoderDecoder, config=encoder_decoder.Config, hf_prefix="T5", config_keys=T5_KEYS,
    read=_read_t5, write=_write_t5,
    weights=lambda c: weights.t5(c.gated_mlp), extra_weights=_untied, prefix={"sequence": "transformer."},
    bare_class="ForConditionalGeneration",
    heads=lambda c: {
      "span": weights.SPAN,
      "sequence": weights.classifier("sequence", "classification_head.out_proj", "classification_head.dense"),
    },
    ignore_suffixes=("encoder.embed_tokens.weight", "decoder.embed_tokens.weight", "lm_head.weight"),
  ),
}  # fmt: skip
