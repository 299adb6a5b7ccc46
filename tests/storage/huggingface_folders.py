"""A tiny random model of every Hugging Face family, written as its folder; without transformers."""

import atexit
import dataclasses
import functools
import json
import pathlib
import shutil
import tempfile

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from lmjax.storage import huggingface, safetensors
from lmjax.storage.huggingface.families import FAMILIES
from lmjax.storage.huggingface.load import axis_sizes
from lmjax.storage.huggingface.weights import hf_shape
from lmjax.tasks.masked_lm import MaskedLM
from lmjax.utils.fields import Fields

V, D, N, H, F = 50, 32, 2, 4, 64
BERT = dict(vocab_size=V, hidden_size=D, num_hidden_layers=N, num_attention_heads=H, intermediate_size=F,
            max_position_embeddings=30)  # fmt: skip
LLAMA = BERT | dict(num_key_value_heads=2)
T5 = dict(vocab_size=V, d_model=D, d_kv=8, d_ff=F, num_layers=N, num_heads=H, relative_attention_num_buckets=8)
BART = dict(
  vocab_size=V, d_model=D, encoder_layers=N, decoder_layers=3, encoder_attention_heads=H, decoder_attention_heads=H,
  encoder_ffn_dim=F, decoder_ffn_dim=F, max_position_embeddings=30, pad_token_id=1, decoder_start_token_id=2,
)  # fmt: skip
GPT = dict(vocab_size=V, n_positions=24, n_embd=D, n_layer=N, n_head=H)
SHAPES = {
  "openai-gpt": GPT, "gpt2": GPT, "llama": LLAMA, "mistral": LLAMA | dict(sliding_window=4), "qwen2": LLAMA,
  "qwen3": LLAMA | dict(head_dim=16), "granite": LLAMA | dict(embedding_multiplier=6.0, logits_scaling=3.0),
  "phi3": LLAMA | dict(pad_token_id=0), "gemma": LLAMA | dict(head_dim=16),
  "gemma2": LLAMA | dict(head_dim=16, sliding_window=4, attn_logit_softcapping=2.0, final_logit_softcapping=3.0),
  "gemma3_text": LLAMA | dict(head_dim=16, sliding_window=4, sliding_window_pattern=2),
  "opt": {key: value for key, value in BERT.items() if key != "intermediate_size"} | dict(ffn_dim=F),
  "gpt_neox": BERT, "phi": LLAMA, "mixtral": LLAMA | dict(num_local_experts=4, num_experts_per_tok=2),
  "qwen3_moe": LLAMA | dict(num_experts=4, num_experts_per_tok=2, moe_intermediate_size=24),
  "bert": BERT, "roberta": BERT, "xlm-roberta": BERT, "camembert": BERT,
  "electra": BERT | dict(embedding_size=16), "albert": BERT | dict(embedding_size=16),
  "distilbert": dict(vocab_size=V, dim=D, n_layers=N, n_heads=H, hidden_dim=F, max_position_embeddings=30),
  "deberta-v2": BERT | dict(relative_attention=True, position_buckets=4, max_relative_positions=10,
                            position_biased_input=False, pos_att_type=["p2c", "c2p"], share_att_key=True,
                            norm_rel_ebd="layer_norm", pad_token_id=0),
  "modernbert": BERT | dict(local_attention=6, pad_token_id=0, cls_token_id=1, sep_token_id=2,
                            bos_token_id=1, eos_token_id=2),
  "llava": dict(text_config=LLAMA, image_token_index=V - 1, vision_config=dict(
    image_size=8, patch_size=4, hidden_size=24, intermediate_size=40, num_attention_heads=3, num_hidden_layers=2)),
  "t5": T5, "mt5": T5, "bart": BART, "marian": BART,
}  # fmt: skip


def write_model(path: pathlib.Path, kind: str, **keys) -> huggingface.Loaded:
  """Writes a model with the head of its pretraining, and returns it as it is read, its parameters in memory."""
  shutil.copytree(_write(kind, tuple(keys.items())), path)
  loaded = huggingface.load(path)
  return dataclasses.replace(loaded, params=loaded.arrays())


@functools.cache
def _write(kind: str, changes: tuple[tuple[str, object], ...]) -> pathlib.Path:
  """Returns the folder of a model, which is written once in a process."""
  path, keys = pathlib.Path(tempfile.mkdtemp()) / "model", dict(changes)
  atexit.register(shutil.rmtree, path.parent)
  family, shape = FAMILIES[kind], SHAPES[kind] | keys
  model = family.module(family.from_hf(Fields(shape, "config.json")))
  ids = jnp.zeros((1, 4), jnp.int32)
  batch = {"inputs": ids, "decoder_inputs": ids, "segments": ids + 1}
  if kind == "llava":
    batch["embeddings"] = jnp.zeros((1, model.config.patches, model.config.patch_values))
  params = {"model": model.init(jax.random.key(0), batch)["params"], "heads": {}}
  if model.kind == "encoder":
    head = MaskedLM(model).heads()["masked_lm"]
    params["heads"]["masked_lm"] = head.init(jax.random.key(1), jnp.zeros((1, 2, D)))["params"]
  params = jax.tree.map(lambda x: x + 0.1 * jax.random.normal(jax.random.key(x.size), x.shape), nn.unbox(params))
  huggingface.save(path, model, params, settings=shape | {"model_type": kind})
  return path


def tensors_of(path: pathlib.Path) -> dict[str, np.ndarray]:
  """Returns the tensors of a folder in memory."""
  tensors = safetensors.Tensors(path)
  return {name: np.array(tensors[name]) for name in tensors}


def write_tensors(path: pathlib.Path, tensors: dict[str, np.ndarray], **keys) -> pathlib.Path:
  """Replaces the tensors of a folder, and keys of its config.json; a key that is ... is removed."""
  shapes = {name: (array.dtype, array.shape) for name, array in tensors.items()}
  part = path / "part"
  safetensors.write(part, shapes, tensors.values())
  part.rename(path / "model.safetensors")
  config = json.loads((path / "config.json").read_text()) | keys
  (path / "config.json").write_text(json.dumps({key: value for key, value in config.items() if value is not ...}))
  return path


def write_without_scores(path: pathlib.Path, kind: str, ending: str = "Model") -> pathlib.Path:
  """Writes a model that scores no tokens: a base model, or with the ending EncoderModel the encoder of a T5."""
  write_model(path, kind, tie_word_embeddings=False)
  left_out = ("lm_head.", "embed_out.", "cls.", "vocab_", "generator_", "predictions.", "final_")
  left_out += ("head.", "decoder.weight", "decoder.bias")  # of ModernBERT
  left_out += ("decoder.",) if ending == "EncoderModel" else ()
  tensors = {name: array for name, array in tensors_of(path).items() if not name.startswith(left_out)}
  return write_tensors(path, tensors, architectures=[FAMILIES[kind].hf_prefix + ending])


def write_classifier(path: pathlib.Path, kind: str, head: str) -> pathlib.Path:
  """Writes a model with a classification head of three classes."""
  write_without_scores(path, kind, "EncoderModel" if (kind, head) == ("t5", "tokens") else "Model")
  config, family = huggingface.load(path).model.config, FAMILIES[kind]
  sizes, rng, tensors = axis_sizes(config) | {"Y": 3}, np.random.default_rng(0), tensors_of(path)
  for weight in family.heads(config)[head]:
    tensors[weight.hf] = rng.normal(size=hf_shape(weight.layout, sizes)).astype(np.float32)
  start = family.prefix.get("", "")
  if start:
    under = family.prefix_under([head])
    tensors = {under + name.removeprefix(start) if name.startswith(start) else name: a for name, a in tensors.items()}
  labels = {str(i): f"LABEL_{i}" for i in range(2 if head == "span" else 3)}
  return write_tensors(path, tensors, architectures=[family.architecture([head])], id2label=labels)
