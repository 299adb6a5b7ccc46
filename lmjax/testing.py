"""Tiny models and random batches, for tests and notebooks."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from lmjax.data.batch import LEGEND, Batch, Key, key_axes
from lmjax.data.tokenizers.spelling import PAD_CHARACTER
from lmjax.models.decoder import Config, Decoder
from lmjax.state import TrainState, make_init
from lmjax.tasks.base import Task
from lmjax.utils.pytree import Tree


def tiny_decoder(**changes) -> Decoder:
  """Returns a decoder with 3 layers, width 32, a vocabulary of 50 and a length of 16."""
  shape = dict(vocabulary=50, length=16, width=32, depth=3, heads=4, kv_heads=4, head_size=8, mlp=64)
  return Decoder(Config(**(shape | changes)))


@functools.partial(jax.jit, static_argnums=0)
def _init(owner, rng: jax.Array, *inputs: Tree) -> Tree:
  return nn.unbox(owner.init(rng, *inputs))


def init_params(owner: nn.Module | Task, *inputs: Tree, seed: int = 0) -> Tree:
  """Returns the freshly initialised parameters of a module or a task, without axis names; `init` is jitted."""
  return _init(owner, jax.random.key(seed), *inputs)


def init_state(*arguments, abstract: bool = False) -> TrainState:
  """Returns a new state from scratch (see `state.make_init`), or its shapes and shardings."""
  init, shapes = make_init(*arguments)
  return shapes if abstract else init({})


def fake_batch(task: Task, batch: int = 4, length: int = 16, seed: int = 0) -> Batch:
  """Returns a random batch of a task's spec.

  A row has two packed documents, the second half as long as the first; its last token is padding. The keys, their axes
  and the kind of their values come from `data.batch.LEGEND`. Where source and target differ in length, the shorter one
  is the beginning of such a row.
  """
  spec, vocabulary = task.spec(batch, length), task.model.config.vocabulary
  axes, rng = key_axes(spec), np.random.default_rng(seed)
  longest = max([length] + [leaf.shape[1] for key, leaf in spec.items() if axes.get(key, "")[1:2] in ("L", "T")])
  ids = rng.integers(0, vocabulary, (batch, longest + 1))
  first = longest * 2 // 3  # tokens of the first document
  segments = np.where(np.arange(longest) < first, 1, 2)
  segments[-1] = 0
  per_token = {
    "token": ids[:, :-1],
    "next_token": ids[:, 1:],
    "previous_token": ids[:, :-1],
    "position": np.where(segments == 2, np.arange(longest) - first, np.arange(longest)),
    "segment": segments,
    "token_type": segments == 2,
    "weight": segments > 0,
  }

  def values(content: str, axes: str, shape: tuple[int, ...]) -> np.ndarray:
    if axes in ("BL", "BT") and content in per_token:
      return np.broadcast_to(per_token[content], (batch, longest))[:, : shape[1]]
    if axes == "BLC":
      return rng.integers(1, PAD_CHARACTER + 1, shape) * (segments > 0)[: shape[1], None]
    if content == "weight":
      return np.ones(shape)
    above = {"position": length - 1, "label": vocabulary if axes == "BP" else 2}  # exclusive
    return rng.integers(0, above[content], shape)

  numbers = {key: Key("", "float32", "weight", "") for key in spec if key not in LEGEND}  # of what a task collects
  contents = {key: key_.content for key, key_ in (LEGEND | numbers).items()}
  return {
    key: jnp.asarray(values(contents[key], axes.get(key, ""), leaf.shape), leaf.dtype) for key, leaf in spec.items()
  }
