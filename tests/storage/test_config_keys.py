"""Every key of every family's config.json is obeyed, refused by name, or of no effect in transformers either."""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lmjax.storage import huggingface
from lmjax.storage.huggingface.families import FAMILIES
from lmjax.storage.huggingface.folder import task_of
from lmjax.tasks.causal_lm import CausalLM
from lmjax.utils.errors import UserError
from lmjax.utils.fields import Fields
from tests.storage.huggingface_folders import SHAPES, V

pytestmark = [pytest.mark.torch, pytest.mark.filterwarnings("ignore")]

CLASSES = {
  "openai-gpt": "OpenAIGPTLMHeadModel", "gpt2": "GPT2LMHeadModel", "llama": "LlamaForCausalLM",
  "mistral": "MistralForCausalLM", "qwen2": "Qwen2ForCausalLM", "bert": "BertForMaskedLM",
  "qwen3": "Qwen3ForCausalLM", "granite": "GraniteForCausalLM", "phi3": "Phi3ForCausalLM", "gemma": "GemmaForCausalLM",
  "gemma2": "Gemma2ForCausalLM", "gemma3_text": "Gemma3ForCausalLM", "opt": "OPTForCausalLM",
  "gpt_neox": "GPTNeoXForCausalLM", "phi": "PhiForCausalLM", "mixtral": "MixtralForCausalLM",
  "qwen3_moe": "Qwen3MoeForCausalLM", "llava": "LlavaForConditionalGeneration",
  "roberta": "RobertaForMaskedLM", "distilbert": "DistilBertForMaskedLM", "t5": "T5ForConditionalGeneration",
  "xlm-roberta": "XLMRobertaForMaskedLM", "camembert": "CamembertForMaskedLM", "mt5": "MT5ForConditionalGeneration",
  "bart": "BartForConditionalGeneration", "marian": "MarianMTModel",
  "deberta-v2": "DebertaV2ForMaskedLM", "modernbert": "ModernBertForMaskedLM",
  "electra": "ElectraForMaskedLM", "albert": "AlbertForMaskedLM",
}  # fmt: skip
ACTIVATIONS = ("gelu", "gelu_new", "gelu_pytorch_tanh", "gelu_fast", "relu", "silu", "swish", "tanh", "quick_gelu",
               "relu2", "mish", "sigmoid", "linear", "gelu_10")  # fmt: skip
LONG = dict(rope_theta=1e4, original_max_position_embeddings=8)
ROPES = [
  dict(rope_type="default", rope_theta=100.0), dict(rope_type="linear", factor=3.0, rope_theta=1e4),
  dict(rope_type="dynamic", factor=3.0, rope_theta=1e4), dict(rope_type="yarn", factor=4.0, **LONG),
  dict(rope_type="yarn", factor=4.0, attention_factor=0.7, beta_fast=16, beta_slow=2, truncate=False, **LONG),
  dict(rope_type="yarn", factor=4.0, mscale=0.5, mscale_all_dim=2.0, **LONG),
  dict(rope_type="llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, **LONG),
  dict(rope_type="longrope", short_factor=[1.0, 1.1, 1.2, 1.3], long_factor=[1.0, 2.0, 3.0, 4.0], factor=2.0, **LONG),
  dict(rope_type="longrope", short_factor=[1.0] * 4, long_factor=[2.0] * 4, attention_factor=1.5, rope_theta=1e4,
       original_max_position_embeddings=64),
  dict(rope_type="linear", factor=2.0, rope_theta=1e4, partial_rotary_factor=0.5),
  dict(rope_type="proportional", rope_theta=1e4), dict(rope_type="dynamic", factor=2.0, rope_theta=1e4, odd=3),
]  # fmt: skip
# Other values of keys whose default does not suggest one, or more than one.
VALUES = {
  "activation_function": ACTIVATIONS, "activation": ACTIVATIONS[4:9], "hidden_act": ACTIVATIONS[4:9],
  "dense_act_fn": ACTIVATIONS[4:9],
  "afn": ("relu", "silu", "swish"), "feed_forward_proj": ("gated-gelu", "gated-silu", "gelu", "relu", "gated-relu"),
  "architectures": (["Other"],), "dtype": ("float16", "bfloat16"), "id2label": ({0: "a", 1: "b", 2: "c"},),
  "label2id": ({"a": 0, "b": 1},), "problem_type": ("regression",), "classifier_dropout": (0.3,), "n_inner": (48,),
  "summary_activation": ("tanh",), "summary_type": ("last",), "pad_token_id": (2,), "bos_token_id": (3,),
  "eos_token_id": (4, [4, 5]), "num_decoder_layers": (1, 3), "max_window_layers": (0, 1),
  "sliding_window": (3, 6, None),
  "layer_types": (["sliding_attention", "full_attention"], ["full_attention"] * 2, ["chunked_attention"] * 2),
  "rope_parameters": ROPES, "num_key_value_heads": (1, 4), "head_dim": (16,), "transformers_version": ("3.0",),
  "type_vocab_size": (3,), "_name_or_path": ("x",), "pretraining_tp": (2,), "chunk_size_feed_forward": (3,),
  "attn_logit_softcapping": (1.0, None), "final_logit_softcapping": (1.0, None), "query_pre_attn_scalar": (9,),
  "use_bidirectional_attention": (True,), "hidden_activation": ACTIVATIONS[4:9], "word_embed_proj_dim": (16,),
  "embedding_multiplier": (2, 0.5), "logits_scaling": (2, 0.5), "original_max_position_embeddings": (4,),
  "classifier_pooling": ("mean",), "classifier_activation": ("relu",), "pos_att_type": (["c2p"], "p2c", [], None),
  "position_buckets": (2, 0, -1), "max_relative_positions": (3, 6, -1), "norm_rel_ebd": ("none",),
  "pooler_hidden_act": ("relu",), "mlp_only_layers": ([0], None),
  "output_attentions": (), "is_gated_act": (), "model_type": (), "return_dict": (),
}  # fmt: skip
# Keys that transformers reads although its config classes do not list them.
MORE = {
  "llama": dict(partial_rotary_factor=(0.5,), rope_theta=(50.0,), sliding_window=(3,),
                quantization_config=(dict(quant_method="fp8"),)),
  "mistral": dict(layer_types=(["sliding_attention", "full_attention"],), attention_bias=(True,)),
  "qwen2": dict(rope_theta=(50.0,), use_sliding_window=(True,), head_dim=(16,)),
  "bert": dict(position_embedding_type=("relative_key",), pruned_heads=({"0": [1]},)),
  "xlm-roberta": dict(position_embedding_type=("relative_key_query",)), "mt5": dict(scale_decoder_outputs=(True,)),
  "roberta": dict(position_embedding_type=("relative_key_query",), pruned_heads=({"0": [1]},)),
  "distilbert": dict(pruned_heads=({"0": [1]},)), "t5": dict(scale_decoder_outputs=(False,)),
  "qwen3": dict(rope_theta=(50.0,)), "granite": dict(rope_theta=(50.0,), head_dim=(16,)),
  "phi3": dict(partial_rotary_factor=(0.5,), attention_bias=(True,), rope_theta=(50.0,)),
  "gemma": dict(hidden_activation=("relu",)), "gemma2": dict(hidden_act=("relu",), rope_theta=(50.0,)),
  "gemma3_text": dict(rope_local_base_freq=(50.0,), rope_theta=(50.0,), sliding_window_pattern=(1,),
                      rope_scaling=(dict(rope_type="linear", factor=3.0),)),
  "deberta-v2": dict(conv_kernel_size=(3,), embedding_size=(16,), pooler_hidden_size=(16,), attention_head_size=(4,)),
  "modernbert": dict(global_attn_every_n_layers=(1, 2), global_rope_theta=(50.0,), local_rope_theta=(50.0,),
                     rope_scaling=(dict(rope_type="linear", factor=3.0),), sparse_prediction=(True,)),
  "opt": dict(activation_dropout=(0.3,), is_decoder=(True,)),
  "gpt_neox": dict(rotary_pct=(0.5,), rotary_emb_base=(50,), rope_scaling=(dict(type="linear", factor=3.0),)),
  "phi": dict(partial_rotary_factor=(0.25,), rope_theta=(50.0,)),
  "gpt2": dict(pruned_heads=({"0": [1]},)), "openai-gpt": dict(n_ctx=(9,)),
}  # fmt: skip
BASES = {"qwen2-window": ("qwen2", dict(use_sliding_window=True, sliding_window=4, max_window_layers=1))}
BASES |= {"qwen3-window": ("qwen3", dict(use_sliding_window=True, sliding_window=4, max_window_layers=1))}
BASES |= {"t5-gated": ("t5", dict(feed_forward_proj="gated-gelu", tie_word_embeddings=False))}
BASES |= {kind: (kind, {}) for kind in FAMILIES}
FAST = ("gpt2", "llama", "bert", "t5-gated", "qwen2-window")  # the others are slow
WINDOW_KEYS = ("sliding_window", "max_window_layers", "layer_types", "use_sliding_window")
GATED_KEYS = ("is_gated_act", "dense_act_fn", "tie_word_embeddings", "scale_decoder_outputs", "num_decoder_layers")
RNG = np.random.default_rng(0)
IDS, TARGET = RNG.integers(6, V, (2, 12)), RNG.integers(6, V, (2, 9))


def hf_config(base, **keys):
  import transformers

  kind, more = BASES[base]
  return getattr(transformers, CLASSES[kind]).config_class(**(SHAPES[kind] | more | keys))


@functools.cache
def base_model(base):
  """Returns the logits and the weights of the model with the base config."""
  import torch

  model = make(base, hf_config(base))
  with torch.no_grad():
    for name, p in model.named_parameters():
      if p.requires_grad:  # Marian has its sinusoids as a parameter
        p.add_(0.1 * torch.randn(p.shape, generator=torch.Generator().manual_seed(len(name))))
  return logits(model), {name: p.clone() for name, p in model.state_dict().items()}


def make(base, config):
  import torch
  import transformers

  torch.manual_seed(0)
  config._attn_implementation = "eager"  # the only one with caps on scores
  return getattr(transformers, CLASSES[BASES[base][0]])(config).eval()


def logits(model):
  import torch

  with torch.no_grad():
    inputs = {"input_ids": torch.tensor(IDS)}
    if model.config.is_encoder_decoder and hasattr(model.base_model, "decoder"):
      inputs["decoder_input_ids"] = torch.tensor(TARGET)
    return model(**inputs, return_dict=True).logits.float().numpy()


def lmjax_logits(loaded):
  task, ones = task_of(loaded), lambda x: jnp.ones(x.shape, jnp.int32)
  batch = {"inputs": jnp.asarray(IDS), "segments": ones(IDS), "token_types": 0 * ones(IDS)}
  batch |= {"positions": jnp.broadcast_to(jnp.arange(12), IDS.shape)}
  if loaded.model.kind == "encoder_decoder":
    batch |= {"decoder_inputs": jnp.asarray(TARGET), "decoder_segments": ones(TARGET)}
    task = CausalLM(loaded.model)
  with jax.disable_jit():  # compiling takes longer
    return np.asarray(task.forward(jax.tree.map(jnp.asarray, loaded.arrays()), batch).logits)


def others(key, default):
  """Returns other values of a key than its default."""
  if key in VALUES:
    return VALUES[key]
  if isinstance(default, bool):
    return (not default,)
  if isinstance(default, int):
    return (2 * default,)
  return (10 * default,) if isinstance(default, float) else ()


def cases(base):
  """Yields (key, value) of every key of transformers' default config, and of `MORE`."""
  kind = BASES[base][0]
  config = hf_config(base).to_dict()
  keys = {key: others(key, value) for key, value in config.items()} | MORE.get(kind, {})
  assert not [key for key, values in keys.items() if not values and VALUES.get(key) != ()], "keys without other values"
  if base != kind:
    keys = {key: keys[key] for key in (*WINDOW_KEYS, *GATED_KEYS) if key in keys}
  keys["rope_parameters"] = keys.get("rope_parameters", ())[: None if base == "llama" else 2]
  for key, values in keys.items():
    yield from ((key, value) for value in values)


@functools.cache
def base_config(base, folder):
  return huggingface.load(folder).model.config


def fault_of(base, key, value, folder, capsys):
  """Returns how the reading of a changed key is wrong; None where it is right, "" where transformers has no such model.

  Refused is right where the message names the key. Without an effect on lmjax's config, it must have none on
  transformers' logits; else the logits must agree.
  """
  before, state = base_model(base)
  try:
    model = make(base, hf_config(base, **{key: value}))
    shapes = {name: p.shape for name, p in model.state_dict().items()}
    same_shapes = shapes == {name: p.shape for name, p in state.items()}
    if same_shapes:
      model.load_state_dict(state)
    wanted = logits(model)
  except Exception:  # of many types
    return ""
  model.save_pretrained(folder)
  file = folder / "config.json"
  if key not in json.loads(file.read_text()):
    file.write_text(json.dumps(json.loads(file.read_text()) | {key: value}))
  capsys.readouterr()
  try:
    loaded = huggingface.load(folder)
  except UserError as error:
    return None if key in str(error) else f"refused without its name: {error}"
  noted = capsys.readouterr().err
  if noted and key not in MORE.get(BASES[base][0], {}):
    return f"printed {noted}"
  scale = max(np.abs(wanted).max(), 1)
  if same_shapes and loaded.model.config == base_config(base, folder.parent / "base"):
    changed = np.abs(wanted - before).max()
    return f"has no effect, but changes transformers' logits by {changed:.1e}" if changed > 2e-6 * scale else None
  difference = np.abs(lmjax_logits(loaded) - wanted).max()
  return None if difference < 2e-5 * scale else f"logits differ by {difference:.1e}"


@pytest.mark.parametrize("base", [b if b in FAST else pytest.param(b, marks=pytest.mark.slow) for b in BASES])
def test_keys_are_obeyed_refused_or_of_no_effect(base, tmp_path, capsys):
  model = make(base, hf_config(base))
  model.load_state_dict(base_model(base)[1])
  model.save_pretrained(tmp_path / "base")
  faults, missing = [], []
  for i, (key, value) in enumerate(cases(base)):
    fault = fault_of(base, key, value, tmp_path / str(i), capsys)
    if fault == "":
      missing.append(f"{key} {value}")
    elif fault:
      faults.append(f"{key} {value}: {fault}")
  assert not faults, "\n".join(faults)
  assert len(missing) <= i / 4, missing


@pytest.mark.parametrize("kind", FAMILIES)
def test_a_missing_key_has_the_default_of_transformers(kind):
  """The config that lmjax reads without a key is what it reads from the defaults that transformers fills in."""
  import transformers

  config_class = getattr(transformers, CLASSES[kind]).config_class
  family, complete = FAMILIES[kind], config_class().to_dict()
  read = lambda keys: family.from_hf(Fields(json.loads(json.dumps(keys)), "config.json"))  # noqa: E731
  assert read({}) == read(complete)
  for key in complete:
    keys = {name: value for name, value in complete.items() if name != key}
    assert read(keys) == read(config_class(**keys).to_dict()), key
