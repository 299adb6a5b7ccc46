"""Tiny random GPT-1, GPT-2 and Llama against transformers: the same weights give the same scores."""

import jax.numpy as jnp
import numpy as np
import pytest

from lmjax.layers.positions import Rotary
from lmjax.testing import tiny_decoder

pytestmark = [pytest.mark.torch, pytest.mark.filterwarnings("ignore")]

D, N, H, K, F, V, P = 32, 3, 4, 8, 64, 50, 16


def stacked(weights, pattern):
  return np.stack([weights[pattern.format(i)] for i in range(N)])


def padded(table):
  return np.pad(table, ((0, 128 - len(table)), (0, 0)))


def dense(kernel, bias, *shape):
  outputs = shape[1:] if shape[0] == D else shape[-1:]
  return {"kernel": kernel.reshape(N, *shape), "bias": bias.reshape(N, *outputs)}


def gpt(model):
  """Maps the Conv1D layout of transformers' GPT-1 and GPT-2."""
  w = {key.removeprefix("transformer."): value.numpy() for key, value in model.state_dict().items()}
  embed, position = ("tokens_embed", "positions_embed") if "tokens_embed.weight" in w else ("wte", "wpe")
  q, k, v = np.split(stacked(w, "h.{}.attn.c_attn.weight"), 3, axis=-1)
  qb, kb, vb = np.split(stacked(w, "h.{}.attn.c_attn.bias"), 3, axis=-1)
  layers = {
    "attention": {
      "query": dense(q, qb, D, H, K),
      "key": dense(k, kb, D, H, K),
      "value": dense(v, vb, D, H, K),
      "out": dense(stacked(w, "h.{}.attn.c_proj.weight"), stacked(w, "h.{}.attn.c_proj.bias"), H, K, D),
    },
    "mlp": {
      "up": dense(stacked(w, "h.{}.mlp.c_fc.weight"), stacked(w, "h.{}.mlp.c_fc.bias"), D, 4 * D),
      "down": dense(stacked(w, "h.{}.mlp.c_proj.weight"), stacked(w, "h.{}.mlp.c_proj.bias"), 4 * D, D),
    },
  }
  for ours, theirs in (("attention_norm", "ln_1"), ("mlp_norm", "ln_2")):
    layers[ours] = {
      "scale": stacked(w, f"h.{{}}.{theirs}.weight"),
      "bias": stacked(w, f"h.{{}}.{theirs}.bias"),
    }
  params = {
    "embed": {"table": padded(w[f"{embed}.weight"])},
    "positions": {"table": w[f"{position}.weight"]},
    "stack": {"layers": layers},
  }
  if "ln_f.weight" in w:
    params["norm"] = {"scale": w["ln_f.weight"], "bias": w["ln_f.bias"]}
  return params


def llama(model):
  w = {key.removeprefix("model."): value.numpy() for key, value in model.state_dict().items()}

  def kernel(name, *shape):
    return {"kernel": stacked(w, f"layers.{{}}.{name}.weight").swapaxes(1, 2).reshape(N, *shape)}

  layers = {
    "attention": {
      "query": kernel("self_attn.q_proj", D, H, K),
      "key": kernel("self_attn.k_proj", D, 2, K),
      "value": kernel("self_attn.v_proj", D, 2, K),
      "out": kernel("self_attn.o_proj", H, K, D),
    },
    "mlp": {
      "gate": kernel("mlp.gate_proj", D, F),
      "up": kernel("mlp.up_proj", D, F),
      "down": kernel("mlp.down_proj", F, D),
    },
    "attention_norm": {"scale": stacked(w, "layers.{}.input_layernorm.weight")},
    "mlp_norm": {"scale": stacked(w, "layers.{}.post_attention_layernorm.weight")},
  }
  return {
    "embed": {"table": padded(w["embed_tokens.weight"])},
    "unembed": {"table": padded(w["lm_head.weight"])},
    "norm": {"scale": w["norm.weight"]},
    "stack": {"layers": layers},
  }


def compare(theirs, ours, params):
  import torch

  with torch.no_grad():
    for name, p in theirs.named_parameters():  # far from the initial values, so that nothing hides
      generator = torch.Generator().manual_seed(len(name))
      p.add_(0.1 * torch.randn(p.shape, generator=generator))
    params = params(theirs)
    ids = np.random.default_rng(0).integers(0, V, (2, 12))
    expected = theirs(torch.tensor(ids)).logits.numpy()
  hidden, _ = ours.apply({"params": params}, jnp.asarray(ids))
  found = ours.apply({"params": params}, hidden, method="logits")
  np.testing.assert_allclose(found, expected, atol=2e-5 * np.abs(expected).max())


def test_gpt1():
  from transformers import OpenAIGPTConfig, OpenAIGPTLMHeadModel

  theirs = OpenAIGPTLMHeadModel(OpenAIGPTConfig(vocab_size=V, n_positions=P, n_embd=D, n_layer=N, n_head=H)).eval()
  compare(theirs, tiny_decoder(post_norm=True, mlp=4 * D), gpt)


def test_gpt2():
  from transformers import GPT2Config, GPT2LMHeadModel

  theirs = GPT2LMHeadModel(GPT2Config(vocab_size=V, n_positions=P, n_embd=D, n_layer=N, n_head=H)).eval()
  compare(theirs, tiny_decoder(mlp=4 * D), gpt)


@pytest.mark.parametrize("scaling", ["none", "linear", "llama3"])
def test_llama(scaling):
  from transformers import LlamaConfig, LlamaForCausalLM

  rope = {"none": {"rope_type": "default"}, "linear": {"rope_type": "linear", "factor": 4.0}}.get(
    scaling,
    {
      "rope_type": "llama3",
      "factor": 8.0,
      "low_freq_factor": 1.0,
      "high_freq_factor": 4.0,
      "original_max_position_embeddings": 8,
    },
  )
  config = LlamaConfig(
    vocab_size=V, max_position_embeddings=P, hidden_size=D, num_hidden_layers=N, num_attention_heads=H,
    num_key_value_heads=2, intermediate_size=F, rms_norm_eps=1e-5, rope_parameters=rope | {"rope_theta": 5000.0},
  )  # fmt: skip
  ours = tiny_decoder(
    groups=2, norm="rms", activation="silu", gated=True, bias=False, tied=False,
    rotary=Rotary(base=5000.0, scaling=scaling, factor=rope.get("factor", 1.0), original=8),
  )  # fmt: skip
  compare(LlamaForCausalLM(config).eval(), ours, llama)


def test_mistral_window():
  from transformers import MistralConfig, MistralForCausalLM

  config = MistralConfig(
    vocab_size=V, max_position_embeddings=P, hidden_size=D, num_hidden_layers=N, num_attention_heads=H,
    num_key_value_heads=2, intermediate_size=F, rms_norm_eps=1e-5, sliding_window=4, head_dim=K,
  )  # fmt: skip
  ours = tiny_decoder(
    groups=2, norm="rms", activation="silu", gated=True, bias=False, tied=False, rotary=Rotary(), window=4
  )
  compare(MistralForCausalLM(config).eval(), ours, llama)
