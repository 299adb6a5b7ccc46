"""Encoders: exact counts, what sees what, and the published models' own numbers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lmjax.models.encoder import PRESETS, Config, Encoder
from lmjax.parallel.sharding import count_parameters
from lmjax.tasks.masked_lm import MaskedLM
from lmjax.testing import init_params

COUNTS = {
  "bert-tiny": 4_385_920, "bert-mini": 11_170_560, "bert-small": 28_763_648, "bert-medium": 41_373_184,
  "bert-base": 109_482_240, "bert-large": 335_141_888, "distilbert": 66_362_880,
  "electra-small": 13_483_008, "albert-base": 11_683_584,
}  # fmt: skip


ALBERT = dict(embedding=16, shared_layers=True)


def tiny(**changes):
  shape = dict(vocabulary=50, length=16, width=32, depth=3, heads=4, head_size=8, mlp=64)
  return Encoder(Config(**(shape | changes)))


def batch(rows=4, length=16, places=5, seed=0):
  rng = np.random.default_rng(seed)
  full = {key: np.zeros((rows, length), np.int32) for key in ("inputs", "token_types", "positions", "segments")}
  full["inputs"] = rng.integers(0, 50, (rows, length)).astype(np.int32)
  full["positions"] = np.tile(np.arange(length, dtype=np.int32), (rows, 1))
  for row in range(rows):
    full["segments"][row, : length - row] = 1
    full["token_types"][row, length // 2 :] = 1
  full["masked_positions"] = rng.integers(0, length - rows, (rows, places)).astype(np.int32)
  full["labels"] = rng.integers(0, 50, (rows, places)).astype(np.int32)
  full["weights"] = (rng.random((rows, places)) < 0.8).astype(np.float32)
  return full | {"next_sentence_label": rng.integers(0, 2, rows).astype(np.int32)}


@pytest.mark.parametrize("name", COUNTS)
def test_parameter_counts(name):
  task = MaskedLM(Encoder(Config(**PRESETS[name])), next_sentence=PRESETS[name].get("pooler", True))
  named = jax.eval_shape(lambda: task.init(jax.random.key(0), {"inputs": jnp.zeros((1, 8), jnp.int32)}))
  assert count_parameters(named["model"]) == COUNTS[name]
  if name == "bert-base":
    assert count_parameters(named) == 110_106_428


def initialised(task):
  params = init_params(task, batch())
  # Away from zero biases and unit scales, so that each of them shows.
  noise = iter(jax.random.split(jax.random.key(1), 1000))
  return jax.tree.map(lambda leaf: leaf + 0.1 * jax.random.normal(next(noise), leaf.shape), params)


@pytest.mark.parametrize("changes", [{}, ALBERT])
def test_every_token_sees_every_other_of_its_segment_and_no_padding(changes):
  model = tiny(**changes)
  b = batch(rows=2)
  params = initialised(MaskedLM(model))["model"]
  base = model.apply({"params": params}, b).tokens
  for place in (0, 5, 14):
    changed = dict(b, inputs=b["inputs"].copy())
    changed["inputs"][:, place] = (changed["inputs"][:, place] + 1) % 50
    after = model.apply({"params": params}, changed).tokens
    assert (np.abs(after - base).max(-1)[0, :15] > 0).all()
  changed = dict(b, inputs=b["inputs"].copy())
  changed["inputs"][1, 15] = (changed["inputs"][1, 15] + 1) % 50  # padding of the second row
  after = model.apply({"params": params}, changed).tokens
  assert (after[1, :15] == base[1, :15]).all()


@pytest.mark.parametrize("base", [{}, ALBERT])
@pytest.mark.parametrize("changes", [dict(scan=False), dict(remat="full"), dict(remat="dots")])
def test_scan_and_remat_change_nothing(changes, base):
  results = []
  for task in (MaskedLM(tiny(**base)), MaskedLM(tiny(**base, **changes))):
    params = initialised(task)

    def loss(params, task=task):
      terms, _ = task.loss(params, {}, {}, batch())
      return sum(terms[key].total for key in task.counts(batch()))

    results.append(jax.value_and_grad(loss)(params))
  np.testing.assert_allclose(results[0][0], results[1][0], rtol=1e-6)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5), results[0][1], results[1][1])


def test_shared_layers_are_one_layer_applied_in_turn():
  """The taps are of all layers, and the output is that of layers with equal parameters."""
  shared, apart = tiny(**ALBERT), tiny(embedding=16)
  params = initialised(MaskedLM(shared))["model"]
  copies = params | {"stack": jax.tree.map(lambda x: jnp.concatenate([x] * 3), params["stack"])}
  one, three = (m.apply({"params": p}, batch(), taps=("hidden",)) for m, p in ((shared, params), (apart, copies)))
  np.testing.assert_allclose(one.tokens, three.tokens, atol=1e-6)
  assert one.taps["hidden"].shape == (3, 4, 16, 32)
  np.testing.assert_allclose(one.taps["hidden"], three.taps["hidden"], atol=1e-6)


def test_the_loss_by_hand():
  """Only predicted places, the tied table and the bias; pairs that are padding do not count."""
  task, b = MaskedLM(tiny()), batch()
  b["segments"][3] = 0
  b["weights"][3] = 0
  params = initialised(task)
  outputs = task.forward(params, b)
  terms, _ = task.loss(params, {}, {}, b)
  scores = np.asarray(outputs.logits, np.float64)
  log_p = scores - np.log(np.exp(scores).sum(-1, keepdims=True))
  nll = -log_p[np.arange(4)[:, None], b["masked_positions"], b["labels"]]
  np.testing.assert_allclose(terms["masked_lm"].total, (nll * b["weights"]).sum(), rtol=1e-5)
  pairs = np.asarray(outputs.taps["next_sentence"], np.float64)[:3]
  right = pairs[np.arange(3), b["next_sentence_label"][:3]] - np.log(np.exp(pairs).sum(-1))
  np.testing.assert_allclose(terms["next_sentence"].total, -right.sum(), rtol=1e-5)
  assert terms["next_sentence"].count == 3 and terms["masked_lm"].count == b["weights"].sum()


def test_the_gradient_of_the_bias_by_differences():
  task, b = MaskedLM(tiny()), batch()
  params = initialised(task)

  def loss(bias):
    heads = params["heads"] | {"masked_lm": params["heads"]["masked_lm"] | {"bias": bias}}
    return task.loss(params | {"heads": heads}, {}, {}, b)[0]["masked_lm"].total

  bias = params["heads"]["masked_lm"]["bias"]
  gradient, word = jax.grad(loss)(bias), int(b["labels"][0, 0])
  step = jnp.zeros_like(bias).at[word].set(0.05)
  np.testing.assert_allclose(gradient[word], (loss(bias + step) - loss(bias - step)) / 0.1, rtol=2e-2)
  assert (gradient[50:] == 0).all(), "padded words have no gradient"


def heads_of(w):
  table = np.pad(w["cls.predictions.bias"], (0, 128 - 50))
  p = "cls.predictions.transform."
  dense = {"kernel": w[p + "dense.weight"].T, "bias": w[p + "dense.bias"]}
  norm = {"scale": w[p + "LayerNorm.weight"], "bias": w[p + "LayerNorm.bias"]}
  follows = {"kernel": w["cls.seq_relationship.weight"].T, "bias": w["cls.seq_relationship.bias"]}
  return {"masked_lm": {"dense": dense, "norm": norm, "bias": table}, "next_sentence": {"scores": follows}}


def layers_of(w, names, depth=3):
  def stacked(name, transpose=True):
    weights = np.stack([w[name.format(i)] for i in range(depth)])
    return weights.swapaxes(1, 2) if transpose and weights.ndim == 3 else weights

  def linear(name, kernel, bias):
    return {
      "kernel": stacked(name + ".weight").reshape(depth, *kernel),
      "bias": stacked(name + ".bias").reshape(depth, *bias),
    }

  def norm(name):
    return {"scale": stacked(name + ".weight"), "bias": stacked(name + ".bias")}

  q, k, v, out, up, down, first, second = names
  attention = {key: linear(name, (32, 4, 8), (4, 8)) for key, name in (("query", q), ("key", k), ("value", v))}
  return {
    "attention": attention | {"out": linear(out, (4, 8, 32), (32,))},
    "mlp": {"up": linear(up, (32, 64), (64,)), "down": linear(down, (64, 32), (32,))},
    "attention_norm": norm(first),
    "mlp_norm": norm(second),
  }


@pytest.mark.torch
@pytest.mark.filterwarnings("ignore")
def test_bert_is_transformers_bert():
  import torch
  import transformers

  torch.manual_seed(0)
  config = transformers.BertConfig(
    vocab_size=50, hidden_size=32, num_hidden_layers=3, num_attention_heads=4, intermediate_size=64,
    max_position_embeddings=16, initializer_range=0.2,
  )  # fmt: skip
  bert = transformers.BertForPreTraining(config).eval()
  w = {name: value.numpy() for name, value in bert.state_dict().items()}
  task, b = MaskedLM(tiny()), batch()
  layer = "bert.encoder.layer.{}."
  names = ("attention.self.query", "attention.self.key", "attention.self.value", "attention.output.dense",
           "intermediate.dense", "output.dense", "attention.output.LayerNorm", "output.LayerNorm")  # fmt: skip
  e = "bert.embeddings."
  model = {
    "embed": {"table": np.pad(w[e + "word_embeddings.weight"], ((0, 78), (0, 0)))},
    "positions": {"table": w[e + "position_embeddings.weight"]},
    "token_types": {"table": w[e + "token_type_embeddings.weight"]},
    "embed_norm": {"scale": w[e + "LayerNorm.weight"], "bias": w[e + "LayerNorm.bias"]},
    "stack": {"layers": layers_of(w, [layer + name for name in names])},
    "pooler": {"kernel": w["bert.pooler.dense.weight"].T, "bias": w["bert.pooler.dense.bias"]},
  }
  outputs = task.forward({"model": model, "heads": heads_of(w)}, b)
  with torch.no_grad():
    expected = bert(
      torch.tensor(b["inputs"]).long(), torch.tensor(b["segments"]).long(), torch.tensor(b["token_types"]).long(),
      output_hidden_states=True,
    )  # fmt: skip
  real = b["segments"] > 0
  np.testing.assert_allclose(np.asarray(outputs.hidden)[real], expected.hidden_states[-1].numpy()[real], atol=1e-5)
  np.testing.assert_allclose(np.asarray(outputs.logits)[real], expected.prediction_logits.numpy()[real], atol=1e-5)
  np.testing.assert_allclose(outputs.taps["next_sentence"], expected.seq_relationship_logits.numpy(), atol=1e-5)


@pytest.mark.torch
@pytest.mark.filterwarnings("ignore")
def test_distilbert_is_transformers_distilbert():
  import torch
  import transformers

  torch.manual_seed(0)
  config = transformers.DistilBertConfig(
    vocab_size=50, dim=32, n_layers=3, n_heads=4, hidden_dim=64, max_position_embeddings=16, initializer_range=0.2
  )
  bert = transformers.DistilBertModel(config).eval()
  w = {name: value.numpy() for name, value in bert.state_dict().items()}
  layer = "transformer.layer.{}."
  names = ("attention.q_lin", "attention.k_lin", "attention.v_lin", "attention.out_lin", "ffn.lin1", "ffn.lin2",
           "sa_layer_norm", "output_layer_norm")  # fmt: skip
  params = {
    "embed": {"table": np.pad(w["embeddings.word_embeddings.weight"], ((0, 78), (0, 0)))},
    "positions": {"table": w["embeddings.position_embeddings.weight"]},
    "embed_norm": {"scale": w["embeddings.LayerNorm.weight"], "bias": w["embeddings.LayerNorm.bias"]},
    "stack": {"layers": layers_of(w, [layer + name for name in names])},
  }
  b = batch()
  hidden = tiny(token_types=0, pooler=False).apply({"params": params}, b)
  with torch.no_grad():
    expected = bert(torch.tensor(b["inputs"]).long(), torch.tensor(b["segments"]).long()).last_hidden_state.numpy()
  real = b["segments"] > 0
  assert hidden.pooled is None
  np.testing.assert_allclose(np.asarray(hidden.tokens)[real], expected[real], atol=1e-5)
