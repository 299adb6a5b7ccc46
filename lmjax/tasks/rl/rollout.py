"""Rollouts: the answers that a policy writes to prompts, and the rows that it learns from.

Prompts are padded on the left and answers on the right, so an answer starts in the same column in every row.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lmjax.data.batch import Batch
from lmjax.decode.logits import Sampling
from lmjax.decode.sample import Sampler
from lmjax.parallel.sharding import constrain, current_layout
from lmjax.utils.pytree import Tree

EVERY = 16  # tokens of an answer between two looks whether all have ended


@dataclasses.dataclass(frozen=True)
class Rollout:
  """Prompts [N, P] with their mask [N, P], and answers [N, T] with -1 after the end; whole on every host."""

  prompts: np.ndarray
  valid: np.ndarray
  answers: np.ndarray

  @property
  def mask(self) -> np.ndarray:
    """1 on the tokens of an answer, float32 [N, T]."""
    return (self.answers >= 0).astype(np.float32)

  def finished(self, ends: tuple[int, ...]) -> np.ndarray:
    """Returns whether each answer has an end token [N]."""
    ended: np.ndarray = np.any(np.isin(self.answers, ends), axis=1)
    return ended

  def rows(self) -> Batch:
    """Returns what a decoder reads, [N, P + T], and its `targets` and `weights` [N, T]."""
    valid = np.concatenate([self.valid, self.answers >= 0], axis=1).astype(np.int32)
    answers = np.maximum(self.answers, 0).astype(np.int32)
    return {
      "inputs": np.concatenate([self.prompts, answers], axis=1).astype(np.int32),
      "positions": np.maximum(np.cumsum(valid, axis=1, dtype=np.int32) - 1, 0),
      "segments": valid,
      "targets": answers,
      "weights": self.mask,
    }


def write_answers(
  model: Any, params: Tree, batch: Batch, seeds: np.ndarray, new: int, temperature: float, ends: tuple[int, ...]
) -> Rollout:
  """Returns the answers that a decoder writes to prompts, sampled without a filter.

  Args:
    params: of the model, in the dtype of its computation.
    batch: prompts on the left of `new` free columns: inputs and weights [N, P], whole on every host.
    seeds: of each row, uint32 [N].
    new: maximum number of tokens of an answer.
    temperature: of sampling; 0 is greedy.
  """
  prompts, valid = batch["inputs"], batch["weights"] > 0
  sampler = Sampler(model, prompts.shape[1] + new, Sampling(temperature=temperature), ends)
  placed = on_mesh({"tokens": prompts, "valid": valid, "seeds": seeds.astype(np.uint32)})
  tokens = sampler.continuations(
    sampler.prepare(params), placed["tokens"], placed["valid"], new, placed["seeds"], every=EVERY
  )
  written = np.concatenate(list(tokens), axis=1)
  answers = np.full((len(prompts), new), -1, np.int32)
  answers[:, : written.shape[1]] = written
  return Rollout(prompts, valid, answers)


def on_mesh(batch: Batch) -> Batch:
  """Returns a batch that is whole on every host as arrays on the mesh."""
  layout = current_layout()
  if layout is None:
    return {key: jnp.asarray(value) for key, value in batch.items()}
  rows = list(range(len(next(iter(batch.values())))))
  placed: Batch = layout.shard_batch(batch, batch, rows)
  return placed


@jax.jit
def _replicate(tree: Tree) -> Tree:
  return jax.tree.map(constrain, tree)


def whole(tree: Tree) -> Any:
  """Returns arrays on the mesh as numpy arrays, whole on every host."""
  return jax.device_get(_replicate(tree))
