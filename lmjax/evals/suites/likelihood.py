"""Log-likelihoods of rows: sorted by length, padded to few shapes, on any mesh."""

import dataclasses
from collections.abc import Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from lmjax.data.batch import Batch
from lmjax.data.tokenizers.spelling import spell
from lmjax.data.tokenizers.words import SPECIAL
from lmjax.evals.suites.encode import Row
from lmjax.layers.backend import jit
from lmjax.layers.leaves import dense
from lmjax.models.base import Table
from lmjax.parallel.sharding import Layout
from lmjax.tasks.base import Task
from lmjax.tasks.encode import Encode
from lmjax.tasks.log_probs import table_logits
from lmjax.utils.errors import UserError
from lmjax.utils.pytree import Tree

SHORTEST = 16  # tokens of the smallest shape
CHUNK = 256  # vectors that are scored against the vocabulary together


@dataclasses.dataclass(frozen=True)
class Likelihood:
  """Scores rows with a task's model.

  length: the longest input, in tokens. start: the id with which the targets of an encoder-decoder start. tokens: of a
  batch, about; a batch of long rows has fewer of them.
  """

  task: Task
  layout: Layout
  length: int
  start: int | None = None
  tokens: int = 2048

  def __post_init__(self):
    if isinstance(self.task, Encode):
      raise UserError("evaluate: this model scores no tokens: it is a classifier, or a model without a head")
    if self.task.model.kind not in ("decoder", "encoder", "encoder_decoder", "bidirectional_lm"):
      raise UserError(f"evaluate: suites do not score {type(self.task.model).__name__} models yet")

    def score(params: Tree, batch: Batch, at: jax.Array) -> tuple[jax.Array, jax.Array]:
      """Returns log p [B, T] of the targets at some positions [B, T], and whether they are the most probable tokens."""
      if self.task.model.kind == "bidirectional_lm":
        return self._both_directions(params, batch, at)
      x, table, targets = self.task.scored(params, batch)
      return _scores(_at(x, at), table, _at(targets, at), self.task.model.config.vocabulary)

    replicated = self.layout.sharding()
    object.__setattr__(self, "_score", jit(score, out_shardings=(replicated, replicated)))

  def _both_directions(self, params: Tree, batch: Batch, at: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Returns the mean log p of ELMo's directions [B, T], and whether the words are the most probable ones forwards."""
    both, width = self.task.hidden(params, batch).tokens, self.task.model.config.width
    # Each word lies between two others: forwards, the one before it predicts it, backwards the one after it.
    forwards, backwards = _at(both[:, :-2, :width], at), _at(both[:, 2:, width:], at)
    table, size = self.task.head("softmax", params, forwards), self.task.model.config.vocabulary
    targets = _at(batch["targets"], at)
    log_probs, best = _scores(forwards, table, targets, size)
    return (log_probs + _scores(backwards, table, targets, size)[0]) / 2, best

  def batches(self, rows: Sequence[Row]) -> Iterator[tuple[list[int], Batch]]:
    """Yields the indices of rows, and a batch of them: longest first, so that what does not fit fails at once."""
    shapes = [self.shape(row) for row in rows]
    order = sorted(range(len(rows)), key=lambda i: (-shapes[i][0], -shapes[i][1], i))
    shards = self.layout.num_shards("batch")
    while order:
      length, targets = shapes[order[0]]
      same = [i for i in order if shapes[i] == (length, targets)]
      most = max(self.tokens // (length + targets), 1)
      size = min(most, 1 << (len(same) - 1).bit_length())
      size = -(-size // shards) * shards
      for first in range(0, len(same), size):
        chosen = same[first : first + size]
        yield chosen, self.batch([rows[i] for i in chosen], size, length, targets)
      order = [i for i in order if shapes[i] != (length, targets)]

  def shape(self, row: Row) -> tuple[int, int]:
    """Returns the padded tokens of a row, and of its targets where the model reads them by themselves."""
    apart = self.task.model.kind == "encoder_decoder"
    return min(_bucket(len(row.inputs)), self.length), _bucket(len(row.targets)) if apart else 0

  def batch(self, rows: Sequence[Row], size: int, length: int, targets: int) -> Batch:
    """Returns a batch of `size` rows, the last of which are empty, in the keys of the task's kind of model."""
    kind = self.task.model.kind
    if kind == "bidirectional_lm":
      return self._spelled(rows, size, length)
    batch = {"inputs": _pad([row.inputs for row in rows], size, length)}
    batch["segments"] = _pad([(1,) * len(row.inputs) for row in rows], size, length)
    batch["positions"] = np.broadcast_to(np.arange(length, dtype=np.int32), (size, length)).copy()
    if kind == "encoder":
      batch["token_types"] = np.zeros((size, length), np.int32)
      batch["masked_positions"] = _pad([row.masked for row in rows], size, 1)
      batch["labels"] = _pad([row.targets for row in rows], size, 1)
      batch["weights"] = _pad([(1,) for _ in rows], size, 1).astype(np.float32)
    elif kind == "encoder_decoder":
      shifted = [(self.start, *row.targets[:-1]) for row in rows]
      batch["decoder_inputs"] = _pad(shifted, size, targets)
      batch["targets"] = _pad([row.targets for row in rows], size, targets)
      batch["decoder_segments"] = _pad([(1,) * len(row.targets) for row in rows], size, targets)
      batch["decoder_positions"] = np.broadcast_to(np.arange(targets, dtype=np.int32), (size, targets)).copy()
      batch["weights"] = batch["decoder_segments"].astype(np.float32)
    else:
      before = [len(row.inputs) - len(row.targets) for row in rows]
      batch["targets"] = _pad([(0,) * n + row.targets for n, row in zip(before, rows, strict=True)], size, length)
      weights = [(0,) * n + (1,) * len(row.targets) for n, row in zip(before, rows, strict=True)]
      batch["weights"] = _pad(weights, size, length).astype(np.float32)
    return batch

  def _spelled(self, rows: Sequence[Row], size: int, length: int) -> Batch:
    """Returns a batch of words as characters, each row between `<S>` and `</S>`, and of the targets among its words."""
    longest = self.task.spec(1, 1)["characters"].shape[2]
    characters = np.zeros((size, length + 2, longest), np.int32)
    for i, row in enumerate(rows):
      words = (SPECIAL[0], *row.inputs, SPECIAL[1])
      characters[i, : len(words)] = [spell(str(word), longest) for word in words]
    before = [(0,) * (len(row.inputs) - len(row.targets)) for row in rows]
    targets = _pad([n + row.targets for n, row in zip(before, rows, strict=True)], size, length)
    weights = _pad([n + (1,) * len(row.targets) for n, row in zip(before, rows, strict=True)], size, length)
    return {"characters": characters, "targets": targets, "weights": weights.astype(np.float32)}

  def score(self, params: Tree, batch: Batch) -> tuple[np.ndarray, np.ndarray]:
    """Returns log p of the targets of a batch [B, L], 0 elsewhere, and whether greedy decoding gives them [B].

    Only where there are targets are vectors scored against the vocabulary, which may be most of the work.
    """
    weights = batch["weights"] > 0
    most = SHORTEST
    while most < weights.sum(axis=1).max():
      most *= 4  # few shapes
    at = np.argsort(~weights, axis=1, kind="stable")[:, :most].astype(np.int32)
    placed = jax.device_put(
      (batch, at), (self.layout.batch(batch), self.layout.sharding("batch", None, shape=at.shape))
    )
    log_probs, best = map(np.asarray, self._score(params, *placed))  # type: ignore[attr-defined]
    kept, whole = np.take_along_axis(weights, at, axis=1), np.zeros(weights.shape, np.float32)
    np.put_along_axis(whole, at, np.where(kept, log_probs, 0.0), axis=1)
    return whole, np.all(best | ~kept, axis=1)

  def each_token(self, params: Tree, rows: Sequence[Row]) -> Iterator[tuple[list[int], list[np.ndarray]]]:
    """Yields (indices of rows, log p of each one's targets), a batch at a time."""
    for chosen, batch in self.batches(rows):
      log_probs, _ = self.score(params, batch)
      yield chosen, [log_probs[i][batch["weights"][i] > 0] for i in range(len(chosen))]

  def __call__(self, params: Tree, rows: Sequence[Row]) -> Iterator[tuple[list[int], np.ndarray, np.ndarray]]:
    """Yields (indices of rows, their log-likelihoods, whether they are greedy), a batch at a time."""
    for chosen, batch in self.batches(rows):
      log_probs, greedy = self.score(params, batch)
      yield chosen, log_probs.sum(axis=1, dtype=np.float64)[: len(chosen)], greedy[: len(chosen)]


def _at(x: jax.Array, at_BxT: jax.Array) -> jax.Array:
  """Returns vectors or numbers [B, T, ...] at positions of each row."""
  return jnp.take_along_axis(x, at_BxT.reshape(at_BxT.shape + (1,) * (x.ndim - 2)), axis=1)


def _scores(x_BxTxD: jax.Array, table: Table, targets_BxT: jax.Array, vocabulary: int) -> tuple[jax.Array, jax.Array]:
  """Returns log p of targets and whether they are the most probable tokens [B, T], some at a time to save memory."""
  shape = targets_BxT.shape
  size = min(targets_BxT.size, CHUNK)
  chunks = -(-targets_BxT.size // size)
  table = table._replace(values=dense(table.values))

  def split(x: jax.Array) -> jax.Array:
    flat = x.reshape(targets_BxT.size, *x.shape[2:])
    return jnp.pad(flat, [(0, chunks * size - len(flat)), *[(0, 0)] * (flat.ndim - 1)]).reshape(
      chunks, size, *x.shape[2:]
    )

  def some(inputs: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
    x_NxD, targets_N = inputs
    logits_NxV = table_logits(x_NxD, table, vocabulary)
    own_N = jnp.take_along_axis(logits_NxV, targets_N[:, None], axis=-1)[:, 0]
    return own_N - jax.nn.logsumexp(logits_NxV, axis=-1), jnp.argmax(logits_NxV, axis=-1) == targets_N

  scored = jax.lax.map(some, (split(x_BxTxD), split(targets_BxT)))
  log_probs, best = (array.reshape(-1)[: targets_BxT.size].reshape(shape) for array in scored)
  return log_probs, best


def _bucket(length: int) -> int:
  """Returns a length of which there are few: a power of two, or three quarters of one."""
  size = SHORTEST
  while size < length:
    size *= 2
  return size * 3 // 4 if length <= size * 3 // 4 and size > SHORTEST else size


def _pad(rows: Sequence[Sequence[int]], size: int, length: int) -> np.ndarray:
  padded = np.zeros((size, length), np.int32)
  for i, row in enumerate(rows):
    padded[i, : len(row)] = row
  return padded
