"""Tiny models, tokenizers and batches, for tests and notebooks."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from lmjax.data.batch import Batch
from lmjax.models.decoder import Config, Decoder
from lmjax.tasks.base import Task
from lmjax.utils.pytree import Tree


def tiny_decoder(**changes) -> Decoder:
  """Returns a decoder of 3 layers, width 32, 50 words, 16 positions."""
  shape = dict(vocabulary=50, length=16, width=32, depth=3, heads=4, kv_heads=4, head_size=8, mlp=64)
  return Decoder(Config(**(shape | changes)))


@functools.partial(jax.jit, static_argnums=0)
def _born(owner, rng: jax.Array, *inputs: Tree) -> Tree:
  return nn.unbox(owner.init(rng, *inputs))


def init_params(owner: nn.Module | Task, *inputs: Tree, seed: int = 0) -> Tree:
  """Returns what a module or a task is init_params with, without axis names, compiled as one."""
  return _born(owner, jax.random.key(seed), *inputs)


def fake_batch(task: Task, batch: int = 4, length: int = 16, seed: int = 0) -> Batch:
  """Returns random ids of two packed documents a row, the second half as long as the first, the last token padding."""
  rng = np.random.default_rng(seed)
  spec, vocabulary = task.spec(batch, length), task.model.config.vocabulary
  target = spec["targets"].shape[1] if "targets" in spec else length
  if target != length:  # a target shorter than its source is its beginning
    wide = fake_batch(dataclasses.replace(task, target_length=0), batch, max(length, target), seed)
    return {key: wide[key][tuple(map(slice, leaf.shape))] for key, leaf in spec.items()}
  ids = rng.integers(0, vocabulary, (batch, length + 1))
  first = length * 2 // 3
  segments = np.where(np.arange(length) < first, 1, 2)
  segments[-1] = 0
  positions = np.where(segments == 2, np.arange(length) - first, np.arange(length))
  full = {
    "inputs": ids[:, :-1],
    "targets": ids[:, 1:],
    "positions": np.tile(positions, (batch, 1)),
    "segments": np.tile(segments, (batch, 1)),
    "token_types": np.tile(segments == 2, (batch, 1)),
    "weights": np.tile(segments > 0, (batch, 1)),
    "next_sentence_label": rng.integers(0, 2, batch),
  }
  for key in ("inputs", "positions", "segments"):
    full["decoder_" + key] = full[key]
  for key in ("characters", "reverse_characters"):
    if key in spec:
      full[key] = rng.integers(1, 262, spec[key].shape) * full["weights"][..., None]
  full["reverse_targets"] = ids[:, :-1]
  if "masked_positions" in spec:
    places = spec["masked_positions"].shape
    full["masked_positions"], full["labels"] = rng.integers(0, length - 1, places), rng.integers(0, vocabulary, places)
    full["weights"] = np.ones(places)
  return {key: jnp.asarray(full[key], leaf.dtype) for key, leaf in spec.items()}
