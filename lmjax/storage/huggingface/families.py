"""The families of Hugging Face's models that are known here: how their configs and tensors are read and written."""

import dataclasses
from collections.abc import Callable, Iterable
from typing import Any

from lmjax.layers.positions import Rotary
from lmjax.models import decoder, encoder, encoder_decoder
from lmjax.storage.huggingface import weights
from lmjax.storage.huggingface.weights import Line
from lmjax.utils.errors import UserError

Theirs = dict[str, Any]

ACTIVATIONS = {
  "gelu": "gelu", "gelu_new": "gelu_tanh", "gelu_pytorch_tanh": "gelu_tanh", "relu": "relu", "silu": "silu",
  "swish": "silu",
}  # fmt: skip
BACK = {"gelu": "gelu", "gelu_tanh": "gelu_new", "relu": "relu", "silu": "silu"}


CLASSES = (
  ("sequence", "ForSequenceClassification"), ("tokens", "ForTokenClassification"), ("span", "ForQuestionAnswering"),
  ("masked_lm next_sentence", "ForPreTraining"), ("masked_lm", "ForMaskedLM"),
  ("next_sentence", "ForNextSentencePrediction"),
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Family:
  """One kind of Hugging Face model.

  stem: what the names of its classes begin with. keys: fields of ours by their names in theirs, both ways. read, write:
  what else there is to a config, theirs to ours and back. lines: the table of a config's model; heads: of each head it
  may have; outside: of what belongs to our model and stands beside theirs. prefix: what the model's names begin with,
  and under which head they begin otherwise. plain: the class without a head. hidden: the activation of the layer that
  a head of classes may have. reads: the vector that it classifies. ignored: endings of names that say nothing new.
  """

  module: type
  config: type
  stem: str
  keys: dict[str, str]
  read: Callable[[Theirs], dict[str, Any]]
  write: Callable[[Any], Theirs]
  lines: Callable[[Any], tuple[Line, ...]]
  heads: Callable[[Any], dict[str, tuple[Line, ...]]]
  outside: Callable[[Any], tuple[Line, ...]] = lambda config: ()
  prefix: dict[str, str] = dataclasses.field(default_factory=dict)  # by head; "" is any other
  plain: str = "ForCausalLM"
  hidden: str = "tanh"
  reads: str = "last"
  ignored: tuple[str, ...] = ()

  def architecture(self, heads: Iterable[str]) -> str:
    """Returns the name of their class with these heads."""
    return self.stem + next((name for head, name in CLASSES if set(head.split()) <= set(heads)), self.plain)

  def prefixed(self, heads: Iterable[str]) -> str:
    """Returns what the names of the model begin with under these heads; nothing, where the class is the model alone."""
    if not heads and self.plain == "Model":
      return ""
    return next((self.prefix[head] for head in heads if head in self.prefix), self.prefix.get("", ""))

  def ours(self, theirs: Theirs) -> Any:
    """Returns our config of theirs.

    Raises:
      UserError: a value that has no like here.
    """
    try:
      shape = {ours: theirs[name] for ours, name in self.keys.items()}
      return self.config(**(shape | self.read(theirs)))
    except (KeyError, ValueError, TypeError) as error:
      raise UserError(f"config.json of a {theirs.get('model_type')}: {error} cannot be read here") from error

  def theirs(self, config: Any) -> Theirs:
    """Returns their config of ours."""
    return {name: getattr(config, ours) for ours, name in self.keys.items()} | self.write(config)


def _activation(name: str) -> str:
  if name not in ACTIVATIONS:
    raise ValueError(f"the activation {name!r}")
  return ACTIVATIONS[name]


GPT_KEYS = dict(
  vocabulary="vocab_size", length="n_positions", width="n_embd", depth="n_layer", heads="n_head",
  epsilon="layer_norm_epsilon",
)  # fmt: skip


def _read_gpt(c: Theirs) -> dict[str, Any]:
  name = c.get("activation_function", c.get("afn", "gelu_new"))
  return dict(
    groups=c["n_head"], head_size=c["n_embd"] // c["n_head"], mlp=c.get("n_inner") or 4 * c["n_embd"],
    activation="gelu_tanh" if name == "gelu" and "afn" in c else _activation(name), post_norm=c["model_type"] != "gpt2",
  )  # fmt: skip


def _write_gpt2(c: decoder.Config) -> Theirs:
  return dict(model_type="gpt2", n_inner=c.mlp, activation_function=BACK[c.activation], tie_word_embeddings=True)


def _write_gpt1(c: decoder.Config) -> Theirs:
  return dict(model_type="openai-gpt", afn="gelu" if c.activation == "gelu_tanh" else c.activation)


LLAMA_KEYS = dict(
  vocabulary="vocab_size", length="max_position_embeddings", width="hidden_size", depth="num_hidden_layers",
  heads="num_attention_heads", mlp="intermediate_size", epsilon="rms_norm_eps",
)  # fmt: skip


def _read_llama(c: Theirs) -> dict[str, Any]:
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
    groups=c.get("num_key_value_heads") or c["num_attention_heads"],
    head_size=c.get("head_dim") or c["hidden_size"] // c["num_attention_heads"],
    activation=_activation(c["hidden_act"]), gated=True, norm="rms", bias=bool(c.get("attention_bias", False)),
    qkv_bias=c["model_type"] == "qwen2", tied=bool(c.get("tie_word_embeddings", False)), rotary=rotary,
    window=c.get("sliding_window") if windowed else None,
  )  # fmt: skip


def _write_llama(c: decoder.Config) -> Theirs:
  kind = "qwen2" if c.qkv_bias else "mistral" if c.window else "llama"
  rope = {"rope_theta": c.rotary.base, "rope_type": "default" if c.rotary.scaling == "none" else c.rotary.scaling}
  if c.rotary.scaling != "none":
    rope |= {"factor": c.rotary.factor}
  if c.rotary.scaling == "llama3":
    rope |= dict(
      low_freq_factor=c.rotary.low, high_freq_factor=c.rotary.high, original_max_position_embeddings=c.rotary.original
    )
  return dict(
    model_type=kind, num_key_value_heads=c.groups, head_dim=c.head_size, hidden_act=BACK[c.activation],
    tie_word_embeddings=c.tied, rope_parameters=rope, sliding_window=c.window,
  )  # fmt: skip


def _untied(c: decoder.Config | encoder_decoder.Config) -> tuple[Line, ...]:
  return () if c.tied else weights.UNTIED


BERT_KEYS = dict(
  vocabulary="vocab_size", width="hidden_size", depth="num_hidden_layers", heads="num_attention_heads",
  mlp="intermediate_size", epsilon="layer_norm_eps", types="type_vocab_size",
)  # fmt: skip


def _read_bert(c: Theirs) -> dict[str, Any]:
  offset = c.get("pad_token_id", 1) + 1 if c["model_type"] == "roberta" else 0
  return dict(
    length=c["max_position_embeddings"] - offset, offset=offset, activation=_activation(c["hidden_act"]),
    head_size=c["hidden_size"] // c["num_attention_heads"],
  )  # fmt: skip


def _write_bert(c: encoder.Config) -> Theirs:
  return dict(
    model_type="roberta" if c.offset else "bert", max_position_embeddings=c.length + c.offset,
    hidden_act=BACK[c.activation], pad_token_id=max(c.offset - 1, 0),
  )  # fmt: skip


def _bert_heads(c: encoder.Config) -> dict[str, tuple[Line, ...]]:
  """A classifier of texts stands on the pooler, one of tokens has the same names."""
  heads = {"masked_lm": weights.BERT_MASKED, "next_sentence": weights.BERT_PAIRS, "span": weights.SPAN}
  labels = ("sequence", "tokens") if c.pooler else ("tokens",)
  return heads | {head: weights.classifier(head, "classifier") for head in labels}


def _read_distilbert(c: Theirs) -> dict[str, Any]:
  return dict(types=0, pooler=False, head_size=c["dim"] // c["n_heads"], activation=_activation(c["activation"]))


T5_KEYS = dict(
  vocabulary="vocab_size", width="d_model", depth="num_layers", heads="num_heads", head_size="d_kv", mlp="d_ff",
  buckets="relative_attention_num_buckets", furthest="relative_attention_max_distance", epsilon="layer_norm_epsilon",
)  # fmt: skip


def _read_t5(c: Theirs) -> dict[str, Any]:
  gate, _, name = c.get("feed_forward_proj", "relu").rpartition("-")
  if c.get("num_decoder_layers") not in (None, c["num_layers"]):
    raise ValueError("a decoder of another depth than the encoder")
  tied = c.get("scale_decoder_outputs", c.get("tie_word_embeddings", True))
  activation = "gelu_tanh" if gate and name == "gelu" else _activation(name)
  return dict(length=c.get("n_positions", 512), gated=bool(gate), activation=activation, tied=bool(tied))


def _write_t5(c: encoder_decoder.Config) -> Theirs:
  name = {"gelu_tanh": "gelu" if c.gated else "gelu_new"}.get(c.activation, c.activation)
  return dict(
    model_type="t5", is_encoder_decoder=True, num_decoder_layers=c.depth, tie_word_embeddings=c.tied,
    scale_decoder_outputs=c.tied, feed_forward_proj=("gated-" if c.gated else "") + name, pad_token_id=0,
    eos_token_id=1, decoder_start_token_id=0,
  )  # fmt: skip


def _decoder_heads(tokens: str) -> Callable[[Any], dict[str, tuple[Line, ...]]]:
  """A text is classified by its last token, without a bias; `tokens` is what the other classifier is called."""
  found = {"tokens": weights.classifier("tokens", tokens), "span": weights.SPAN}
  return lambda c: found | {"sequence": weights.classifier("sequence", "score", bias=False)}


_gpt = dict(
  module=decoder.Decoder, config=decoder.Config, keys=GPT_KEYS, read=_read_gpt, heads=_decoder_heads("classifier"),
  prefix={"": "transformer."}, plain="LMHeadModel",
)  # fmt: skip
_llama = Family(
  module=decoder.Decoder, config=decoder.Config, stem="Llama", keys=LLAMA_KEYS, read=_read_llama, write=_write_llama,
  lines=lambda c: (*weights.LLAMA, *(weights.QWEN2_BIASES if c.qkv_bias else ())), heads=_decoder_heads("score"),
  outside=_untied, prefix={"": "model.", "span": "transformer."}, ignored=("rotary_emb.inv_freq", "lm_head.weight"),
)  # fmt: skip
_encoder = dict(module=encoder.Encoder, config=encoder.Config, plain="Model")
_bert = Family(
  **_encoder, stem="Bert", keys=BERT_KEYS, read=_read_bert, write=_write_bert,
  lines=lambda c: (*weights.BERT, *weights.TYPES, *(weights.POOLER if c.pooler else ())), heads=_bert_heads,
  prefix={"": "bert."}, reads="pooled",
  ignored=("position_ids", "cls.predictions.decoder.weight", "cls.predictions.decoder.bias"),
)  # fmt: skip

FAMILIES: dict[str, Family] = {
  "openai-gpt": Family(
    **_gpt, stem="OpenAIGPT", write=_write_gpt1, lines=lambda c: weights.GPT1,
    ignored=("attn.bias", "attn.masked_bias", "lm_head.weight", "position_ids"),
  ),
  "gpt2": Family(
    **_gpt, stem="GPT2", write=_write_gpt2, lines=lambda c: weights.GPT2,
    ignored=("attn.bias", "attn.masked_bias", "lm_head.weight"),
  ),
  "llama": _llama,
  "mistral": dataclasses.replace(_llama, stem="Mistral", prefix={"": "model."}),
  "qwen2": dataclasses.replace(_llama, stem="Qwen2"),
  "bert": _bert,
  "roberta": dataclasses.replace(
    _bert, stem="Roberta", prefix={"": "roberta."}, reads="first",
    heads=lambda c: {
      "masked_lm": weights.ROBERTA_MASKED, "span": weights.SPAN, "tokens": weights.classifier("tokens", "classifier"),
      "sequence": weights.classifier("sequence", "classifier.out_proj", "classifier.dense"),
    },
    ignored=("position_ids", "lm_head.decoder.weight", "lm_head.decoder.bias"),
  ),
  "distilbert": Family(
    **_encoder, stem="DistilBert",
    keys=dict(
      vocabulary="vocab_size", length="max_position_embeddings", width="dim", depth="n_layers", heads="n_heads",
      mlp="hidden_dim",
    ),
    read=_read_distilbert, write=lambda c: dict(model_type="distilbert", activation=BACK[c.activation]),
    lines=lambda c: weights.DISTILBERT, prefix={"": "distilbert."}, reads="first", hidden="relu",
    heads=lambda c: {
      "masked_lm": weights.DISTILBERT_MASKED, "span": weights.SPAN,
      "sequence": weights.classifier("sequence", "classifier", "pre_classifier"),
      "tokens": weights.classifier("tokens", "classifier"),
    },
    ignored=("vocab_projector.weight", "position_ids"),
  ),
  "t5": Family(
    module=encoder_decoder.EncoderDecoder, config=encoder_decoder.Config, stem="T5", keys=T5_KEYS, read=_read_t5,
    write=_write_t5,
    lines=lambda c: weights.t5(c.gated), outside=_untied, prefix={"sequence": "transformer."},
    plain="ForConditionalGeneration",
    heads=lambda c: {
      "span": weights.SPAN,
      "sequence": weights.classifier("sequence", "classification_head.out_proj", "classification_head.dense"),
    },
    ignored=("encoder.embed_tokens.weight", "decoder.embed_tokens.weight", "lm_head.weight"),
  ),
}  # fmt: skip
