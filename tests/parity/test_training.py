"""Training parity: from the same weights, on the same batches, AdamW here and torch's AdamW see the same losses."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lmjax.compression.base import Identity
from lmjax.optim import Optimizer
from lmjax.parallel.mesh import MeshShape
from lmjax.parallel.sharding import Layout
from lmjax.storage import huggingface
from lmjax.storage.huggingface.folder import task_of
from lmjax.tasks.masked_lm import MaskedLM
from lmjax.testing import init_state
from lmjax.train import make_step

pytestmark = [pytest.mark.torch, pytest.mark.filterwarnings("ignore")]

STEPS, BATCHES, ROWS, LENGTH, VOCABULARY, MASKED = 50, 4, 4, 16, 60, 3
RTOL = 1e-5  # ten times the largest difference seen
OPTIMIZER = Optimizer(peak_lr=1e-3, schedule="constant", weight_decay=0.1, clip=1.0)
BERT = dict(
  vocab_size=VOCABULARY, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64,
  max_position_embeddings=32, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
)  # fmt: skip
LLAMA = {k: v for k, v in BERT.items() if "dropout" not in k} | dict(num_key_value_heads=2)
GPT2 = dict(
  vocab_size=VOCABULARY, n_positions=32, n_embd=32, n_layer=2, n_head=4, resid_pdrop=0.0, embd_pdrop=0.0,
  attn_pdrop=0.0,
)  # fmt: skip
T5 = dict(
  vocab_size=VOCABULARY, d_model=32, d_kv=8, d_ff=64, num_layers=2, num_heads=4, relative_attention_num_buckets=8,
  dropout_rate=0.0, decoder_start_token_id=0,
)  # fmt: skip
CASES = {
  "gpt2": ("GPT2LMHeadModel", "GPT2Config", GPT2),
  "llama": ("LlamaForCausalLM", "LlamaConfig", LLAMA),
  "bert": ("BertForPreTraining", "BertConfig", BERT),
  "t5": ("T5ForConditionalGeneration", "T5Config", T5),
}


def causal_batch(rng):
  """Returns a batch as lmjax takes it and as transformers does, which shifts the labels itself."""
  ids = rng.integers(3, VOCABULARY, (ROWS, LENGTH + 1))
  weights = rng.random((ROWS, LENGTH)) < 0.8
  labels = np.concatenate([np.zeros((ROWS, 1), int), np.where(weights, ids[:, 1:], -100)], axis=1)
  return dict(inputs=ids[:, :-1], targets=ids[:, 1:], weights=weights), dict(input_ids=ids, labels=labels)


def bert_batch(rng):
  """Returns rows of two sentences and padding, with masked tokens and next-sentence labels."""
  ids = rng.integers(3, VOCABULARY, (ROWS, LENGTH))
  lengths = rng.integers(LENGTH - 6, LENGTH + 1, (ROWS, 1))
  valid, token_types = np.arange(LENGTH) < lengths, np.arange(LENGTH) >= lengths // 2
  positions = np.stack([rng.choice(lengths[row, 0], MASKED, replace=False) for row in range(ROWS)])
  weights = np.arange(MASKED) < rng.integers(1, MASKED + 1, (ROWS, 1))
  targets, following = rng.integers(3, VOCABULARY, (ROWS, MASKED)), rng.integers(0, 2, ROWS)
  labels = np.full((ROWS, LENGTH), -100)
  np.put_along_axis(labels, positions, np.where(weights, targets, -100), axis=1)
  batch = dict(
    inputs=ids, token_types=token_types, positions=np.tile(np.arange(LENGTH), (ROWS, 1)), segments=valid,
    masked_positions=positions, labels=targets, weights=weights, next_sentence_label=following,
  )  # fmt: skip
  hf = dict(
    input_ids=ids, attention_mask=valid, token_type_ids=token_types, labels=labels, next_sentence_label=following
  )
  return batch, hf


def t5_batch(rng):
  """Returns padded sources and targets of another length; the decoder starts with the padding token, 0."""
  ids, targets = rng.integers(3, VOCABULARY, (ROWS, LENGTH)), rng.integers(3, VOCABULARY, (ROWS, LENGTH // 2))
  valid = np.arange(LENGTH) < rng.integers(LENGTH - 6, LENGTH + 1, (ROWS, 1))
  weights = np.arange(LENGTH // 2) < rng.integers(4, LENGTH // 2 + 1, (ROWS, 1))
  targets = np.where(weights, targets, 0)
  decoder_inputs = np.concatenate([np.zeros((ROWS, 1), int), targets[:, :-1]], axis=1)
  batch = dict(
    inputs=ids, segments=valid, decoder_inputs=decoder_inputs, decoder_segments=np.ones_like(targets), targets=targets,
    weights=weights,
  )  # fmt: skip
  return batch, dict(input_ids=ids, attention_mask=valid, labels=np.where(weights, targets, -100))


def batches(case: str) -> list[tuple[dict, dict]]:
  """Returns the batches, in both forms; they repeat, so that the loss falls."""
  rng = np.random.default_rng(0)
  make = {"bert": bert_batch, "t5": t5_batch}.get(case, causal_batch)
  made = [make(rng) for _ in range(BATCHES)]
  dtypes = {"weights": jnp.float32}
  pairs = [
    ({key: jnp.asarray(value, dtypes.get(key, jnp.int32)) for key, value in batch.items()}, hf) for batch, hf in made
  ]
  return [pairs[i % BATCHES] for i in range(STEPS)]


def hf_model(case: str):
  import torch
  import transformers

  torch.manual_seed(0)
  name, config, shape = CASES[case]
  tokens = dict(pad_token_id=0, bos_token_id=1, eos_token_id=2)
  return getattr(transformers, name)(getattr(transformers, config)(**shape, **tokens)).train()


def hf_loss(model, batch: dict):
  import torch

  return model(**{key: torch.tensor(np.asarray(value, np.int64)) for key, value in batch.items()}).loss


def hf_losses(model, steps) -> list[float]:
  """Trains a transformers model with torch's AdamW; matrices decay, biases and norms do not."""
  import torch

  parameters = list(model.parameters())
  groups = [
    dict(params=[p for p in parameters if p.ndim > 1], weight_decay=OPTIMIZER.weight_decay),
    dict(params=[p for p in parameters if p.ndim == 1], weight_decay=0.0),
  ]
  betas = (OPTIMIZER.b1, OPTIMIZER.b2)
  optimizer = torch.optim.AdamW(groups, lr=OPTIMIZER.peak_lr, betas=betas, eps=OPTIMIZER.epsilon)
  losses = []
  for _, batch in steps:
    loss = hf_loss(model, batch)
    optimizer.zero_grad()
    loss.backward()
    torch.nn.utils.clip_grad_norm_(parameters, OPTIMIZER.clip)
    optimizer.step()
    losses.append(loss.item())
  return losses


def lmjax_losses(loaded, steps) -> tuple[list[float], dict]:
  """Trains a loaded model with lmjax, and returns the losses and the trained parameters."""
  task, tx, transform = task_of(loaded), OPTIMIZER.build(STEPS), Identity()
  if isinstance(task, MaskedLM):
    task = dataclasses.replace(task, max_predictions=MASKED)
  layout = Layout.build(MeshShape().build(jax.devices()[:1]), "ddp")
  state = init_state(task, tx, transform, layout, ROWS, LENGTH, 0)
  params = jax.tree.map(jnp.asarray, loaded.arrays())
  assert jax.tree.map(jnp.shape, params) == jax.tree.map(jnp.shape, state.params)
  state = state.replace(params=params, opt_state=tx.init(params))
  step, losses = jax.jit(make_step(task, tx, transform)), []
  for batch, _ in steps:
    state, metrics = step(state, batch, jax.random.key(0))
    losses.append(metrics["loss"].value())
  return losses, jax.device_get(state.params)


@pytest.fixture(autouse=True)
def one_thread():
  """On tensors as small as these, torch's threads cost more than they save."""
  import torch

  threads = torch.get_num_threads()
  torch.set_num_threads(1)
  yield
  torch.set_num_threads(threads)


@pytest.mark.parametrize("case", CASES)
def test_fifty_steps_have_the_losses_of_transformers(case, tmp_path):
  import torch
  import transformers

  model, steps = hf_model(case), batches(case)
  model.save_pretrained(tmp_path / "start")
  loaded = huggingface.load(tmp_path / "start")
  wanted = hf_losses(model, steps)
  losses, params = lmjax_losses(loaded, steps)
  np.testing.assert_allclose(losses, wanted, rtol=RTOL)
  assert wanted[-1] < wanted[0] - 0.3, "the loss must fall, or equal losses show little"

  huggingface.save(tmp_path / "trained", loaded.model, params, settings=loaded.settings)
  again = getattr(transformers, CASES[case][0]).from_pretrained(tmp_path / "trained").train()
  with torch.no_grad():
    for _, batch in steps[:BATCHES]:
      np.testing.assert_allclose(hf_loss(again, batch).item(), hf_loss(model, batch).item(), rtol=RTOL)
