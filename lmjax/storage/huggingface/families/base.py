"""What a model family of Hugging Face is: a table of config keys, tensor names and heads."""

import dataclasses
import functools
import sys
from collections.abc import Callable, Iterable
from typing import Any

from lmjax.storage.huggingface.weights import WeightMap
from lmjax.utils.errors import UserError, one_line
from lmjax.utils.fields import Fields

HFConfig = dict[str, Any]

ACTIVATIONS = {
  "gelu": "gelu", "gelu_python": "gelu", "gelu_new": "gelu_tanh", "gelu_pytorch_tanh": "gelu_tanh",
  "gelu_python_tanh": "gelu_tanh", "gelu_fast": "gelu_tanh", "gelu_accurate": "gelu_tanh", "relu": "relu",
  "silu": "silu", "swish": "silu", "tanh": "tanh",
}  # fmt: skip
TO_HF = {"gelu": "gelu", "gelu_tanh": "gelu_new", "relu": "relu", "silu": "silu", "tanh": "tanh"}
# The heads of a model and the ending of its class name; of those whose heads a model has, the first is taken.
CLASSES = (
  ("sequence", "ForSequenceClassification"), ("tokens", "ForTokenClassification"), ("span", "ForQuestionAnswering"),
  ("choice", "ForMultipleChoice"), ("replaced", "ForPreTraining"),
  ("masked_lm next_sentence", "ForPreTraining"), ("masked_lm", "ForMaskedLM"),
  ("next_sentence", "ForNextSentencePrediction"),
)  # fmt: skip
# Classes that predict the next token, so that what scores it must be in the file.
SCORING = ("ForCausalLM", "LMHeadModel", "DoubleHeadsModel", "ForConditionalGeneration", "MTModel")

# Keys that change no vector and no score: names, notes, training, generation (which has a file of its own).
IRRELEVANT = """
  _name_or_path _commit_hash _num_labels architectures attn_implementation _attn_implementation chunk_size_feed_forward
  classifier_dropout cross_attention_hidden_size dtype finetuning_task gradient_checkpointing id2label
  initializer_range label2id model_type name_or_path num_labels output_attentions output_hidden_states output_past
  problem_type return_dict task_specific_params tf_legacy_loss tokenizer_class torch_dtype torchscript
  transformers_version transformers.js_config auto_map use_bfloat16 use_cache tie_encoder_decoder

  bos_token_id cls_token_id decoder_start_token_id eos_token_id mask_token_id pad_token_id sep_token_id unk_token_id

  bad_words_ids begin_suppress_tokens diversity_penalty do_sample early_stopping encoder_no_repeat_ngram_size
  exponential_decay_length_penalty forced_bos_token_id forced_eos_token_id length_penalty max_length min_length
  no_repeat_ngram_size num_beam_groups num_beams num_return_sequences output_scores prefix remove_invalid_values
  repetition_penalty return_dict_in_generate suppress_tokens temperature top_k top_p typical_p
"""
# The only values that are supported of keys that change what a model computes; missing and null always are.
ONLY: dict[str, tuple[Any, ...]] = {"quantization_config": (), "pruned_heads": ({}, []), "per_layer_config": ({},)}
SMALLEST = 1e-30  # epsilon of a norm
# Fields of a model's config that do not say which family it is of: how it is computed, and parts that may be left out.
FREE = ("length", "dropout", "dtype", "scan", "remat", "pooler", "tie_embeddings", "scale_output", "decoder_depth",
        "unembed_bias")  # fmt: skip


@functools.cache
def note(message: str) -> None:
  """Prints one line on the error stream, the first time that a process has it to say."""
  print(f"lmjax: {one_line(message, 1000)}", file=sys.stderr)


@dataclasses.dataclass(frozen=True)
class Family:
  """One `model_type` of Hugging Face.

  module, config: the lmjax classes of the model.
  hf_prefix: the beginning of its class names, `Llama` of `LlamaForCausalLM`.
  config_keys: {field of the lmjax config: key of config.json}, for values that both have.
  defaults: {key of config.json: its value where it is missing}, those of the config class of transformers.
  read: returns the other fields of the lmjax config from config.json; `write` is its inverse.
  weights: returns the table of the model without heads.
  heads: returns {head: table} for the heads that the family can have.
  prefix: {head: beginning of the model's tensor names under that head}; "" is any other head.
  class_names: {ending of a class name: the class}, where it does not begin with hf_prefix.
  bare_class: the ending of the class name of a model without heads.
  head_activation: of the dense layer in a classification head, where it has one.
  masked_activation: of the masked-LM head; default the model's.
  pooling: the vector that a sequence classifier takes; see tasks.encode.Encode.
  unembed, unembed_bias: the tensors that score tokens where the embedding does not; the second only where the table of
    a head names the bias otherwise.
  initial: returns keys of config.json that are written where the model does not come from a folder that has them.
  copies: {other name of a tensor: its name in the tables}.
  renamed: as `copies`, of tensors of which a model has one under either name.
  aliases: {other name of a key of config.json: its name}.
  irrelevant: keys of config.json that change neither vectors nor scores, besides `IRRELEVANT`.
  only: {key of config.json: the values of it that are supported}, besides `ONLY`.
  ignore_suffixes: endings of the names of tensors that are constants, and are not read.
  spelling: returns the name of a tensor in the tables, where versions of transformers call it otherwise.
  """

  module: type
  config: type
  hf_prefix: str
  config_keys: dict[str, str]
  defaults: HFConfig
  read: Callable[[Fields], dict[str, Any]]
  write: Callable[[Any], HFConfig]
  weights: Callable[[Any], tuple[WeightMap, ...]]
  heads: Callable[[Any], dict[str, tuple[WeightMap, ...]]]
  prefix: dict[str, str] = dataclasses.field(default_factory=dict)
  class_names: dict[str, str] = dataclasses.field(default_factory=dict)
  bare_class: str = "ForCausalLM"
  head_activation: str = "tanh"
  masked_activation: str = ""
  pooling: str = "last"
  unembed: str = "lm_head.weight"
  unembed_bias: str = ""
  initial: Callable[[Any], HFConfig] = lambda c: {}
  copies: dict[str, str] = dataclasses.field(default_factory=dict)
  renamed: dict[str, str] = dataclasses.field(default_factory=dict)
  aliases: dict[str, str] = dataclasses.field(default_factory=dict)
  irrelevant: str = ""
  only: dict[str, tuple[Any, ...]] = dataclasses.field(default_factory=dict)
  ignore_suffixes: tuple[str, ...] = ()
  spelling: Callable[[str], str] = str

  def architecture(self, heads: Iterable[str], bare: str = "") -> str:
    """Returns the name of the Hugging Face class with these heads; `bare` is the ending where there are none."""
    ending = next((name for head, name in CLASSES if set(head.split()) <= set(heads)), bare or self.bare_class)
    return self.class_names.get(ending, self.hf_prefix + ending)

  def is_class(self, name: str) -> bool:
    """Returns whether a name is that of a Hugging Face class of this family."""
    ending = name.removeprefix(self.hf_prefix)
    known = ending != name and (ending.startswith("For") or ending.endswith("Model"))
    return known or name in self.class_names.values()

  def prefix_under(self, heads: Iterable[str], bare: str = "") -> str:
    """Returns the beginning of the model's tensor names under these heads; empty for a class without a head."""
    if not heads and (bare or self.bare_class) in ("Model", "EncoderModel"):
      return ""
    return next((self.prefix[head] for head in heads if head in self.prefix), self.prefix.get("", ""))

  def from_hf(self, fields: Fields) -> Any:
    """Returns the lmjax config of a config.json.

    Keys that are neither read nor known to be irrelevant are named in one printed line.

    Raises:
      UserError: lmjax does not support the value of a key.
    """
    config = self._config(fields)
    known = f"{IRRELEVANT} {self.irrelevant}".split()
    unknown = [key for key in fields.unused() if key not in known and fields.values[key] is not None]
    if unknown:
      note(f"{fields.where}: {', '.join(sorted(unknown))} is not known for {self.hf_prefix} models and has no effect")
    return config

  def has(self, config: Any) -> bool:
    """Returns whether the family has a model of a config: what is written of it is read as it was."""
    try:
      read = self._config(Fields(self.to_hf(config), "config.json"))
    except UserError:
      return False
    if type(read) is not type(config):  # a BART is an encoder-decoder, too
      return False
    free = {name: getattr(config, name) for name in FREE if hasattr(config, name)}
    return bool(dataclasses.replace(read, **free) == config)

  def _config(self, fields: Fields) -> Any:
    for alias, key in self.aliases.items():
      if alias in fields:
        value = fields.get(alias)
        if key in fields and fields.get(key) != value:
          raise UserError(f"{fields.where}: {key} and {alias} mean the same and have different values")
        fields.values = fields.values | {key: value}
    for key, values in (ONLY | self.only).items():
      value = fields.get(key, None)
      if value is not None and value not in values:
        raise UserError(f"{fields.where}: {key} {one_line(str(value), 60)!r} is not supported")
    try:
      shape = {field: self._take(fields, key) for field, key in self.config_keys.items()}
      return self.config(**(shape | self.read(fields)))
    except ValueError as error:
      raise UserError(f"{fields.where}: this model is not supported: {error}") from error

  def _take(self, fields: Fields, key: str) -> Any:
    """Returns a size, or the epsilon of a norm."""
    default = self.defaults[key]
    if isinstance(default, float):
      return fields.number(key, default, least=SMALLEST)
    return fields.integer(key, default, least=1)

  def to_hf(self, config: Any) -> HFConfig:
    """Returns the config.json of an lmjax config."""
    return {name: getattr(config, field) for field, name in self.config_keys.items()} | self.write(config)


def activation(fields: Fields, key: str, default: str) -> str:
  """Returns the lmjax name of an activation."""
  return ACTIVATIONS[fields.text(key, default, tuple(ACTIVATIONS))]


def head_size(fields: Fields, width: int, heads: int) -> int:
  """Returns the width of one head.

  Raises:
    UserError: the width is not a multiple of the number of heads.
  """
  if width % heads:
    raise UserError(f"{fields.where}: the width {width} is not a multiple of the {heads} attention heads")
  return width // heads
