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
  """Prompts [N, P] with their mask [N, P], and answers [N, T] with -1 after the end; whole on every host.

  start: of the decoder of an encoder-decoder, whose sources the prompts are; None for a decoder.
  """

  prompts: np.ndarray
  valid: np.ndarray
  answers: np.ndarray
  start: int | None = None

  @property
  def mask(self) -> np.ndarray:
    """1 on the tokens of an answer, float32 [N, T]."""
    return (self.answers >= 0).astype(np.float32)

  def finished(self, ends: tuple[int, ...]) -> np.ndarray:
    """Returns whether each answer has an end token [N]."""
    ended: np.ndarray = np.any(np.isin(self.answers, ends), axis=1)
    return ended

  def rows(self) -> Batch:
    """Returns what a model reads, and its `targets` and `weights` [N, T].

    A decoder reads [N, P + T]; an encoder-decoder [N, P] as its source, and [N, 1 + T] after it.
    """
    answers = np.maximum(self.answers, 0).astype(np.int32)
    learned = {"targets": answers, "weights": self.mask}
    if self.start is None:
      return _read([self.prompts, answers], [self.valid, self.answers >= 0]) | learned
    first = np.full((len(answers), 1), self.start)
    decoder = _read([first, answers], [first == self.start, self.answers >= 0])
    return _read([self.prompts], [self.valid]) | {f"decoder_{key}": own for key, own in decoder.items()} | learned


def _read(ids: list[np.ndarray], valid: list[np.ndarray]) -> Batch:
  """Returns inputs, positions and segments [N, L] of ids side by side."""
  segments = np.concatenate(valid, axis=1).astype(np.int32)
  positions = np.maximum(np.cumsum(segments, axis=1, dtype=np.int32) - 1, 0)
  return {"inputs": np.concatenate(ids, axis=1).astype(np.int32), "positions": positions, "segments": segments}


def write_answers(
  model: Any, params: Tree, batch: Batch, seeds: np.ndarray, new: int, temperature: float, ends: tuple[int, ...],
  start: int,
) -> Rollout:  # fmt: skip
  """Returns the answers that a model writes to prompts, sampled without a filter.

  Args:
    params: of the model, in the dtype of its computation.
    batch: prompts on the left of `new` free columns: inputs and weights [N, P], whole on every host.
    seeds: of each row, uint32 [N].
    new: maximum number of tokens of an answer.
    temperature: of sampling; 0 is greedy.
    start: the id that the decoder of an encoder-decoder reads first.
  """
  prompts, valid = batch["inputs"], batch["weights"] > 0
  sampler = Sampler(model, prompts.shape[1] + new, Sampling(temperature=temperature), ends)
  first = np.full((len(prompts), 1), start, np.int32)
  placed = on_mesh({"tokens": prompts, "valid": valid, "seeds": seeds.astype(np.uint32), "first": first})
  read, source = (placed["tokens"], placed["valid"]), None
  if model.kind == "encoder_decoder":
    read, source = (placed["first"], jnp.ones_like(placed["first"], bool)), read
  tokens = sampler.continuations(sampler.prepare(params), *read, new, placed["seeds"], every=EVERY, source=source)
  written = np.concatenate(list(tokens), axis=1)
  answers = np.full((len(prompts), new), -1, np.int32)
  answers[:, : written.shape[1]] = written
  return Rollout(prompts, valid, answers, None if source is None else start)


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
