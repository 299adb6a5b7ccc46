"""Log-likelihoods of rows: shared contexts once, sorted by length, padded to few shapes, on any mesh."""

import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

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
from lmjax.models.decoder import Decoder
from lmjax.models.encoder_decoder import EncoderDecoder
from lmjax.parallel.sharding import Layout
from lmjax.tasks.base import Task
from lmjax.tasks.encode import Encode
from lmjax.tasks.log_probs import table_logits
from lmjax.utils.errors import UserError
from lmjax.utils.pytree import Tree

SHORTEST = 16  # tokens of the smallest shape
CHUNK = 256  # vectors that are scored against the vocabulary together
SHARED = 8  # tokens of the shortest context that is computed once for the rows that share it


class Group(NamedTuple):
  """Rows that a row of a batch holds: one, or several continuations after the context that they share.

  numbers: of the rows. context: tokens before the first continuation, the last of which predicts the first token of
  each; of an encoder-decoder, those of the source. tokens: that the model reads, of an encoder-decoder only the source.
  targets: of all rows together.
  """

  numbers: tuple[int, ...]
  context: int
  tokens: int
  targets: int


class Scored(NamedTuple):
  """A batch, and what is scored in it.

  batch: what the model reads. at, targets [B, T]: positions, and what each predicts. where: of each row that is scored,
  its number, the row of the batch, and its first and last + 1 column of `targets`.
  """

  batch: Batch
  at: np.ndarray
  targets: np.ndarray
  where: list[tuple[int, int, int, int]]


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

  @property
  def _shares(self) -> bool:
    """Whether a batch may say what attends to what: the places of a row are then not what separates its tokens."""
    model = self.task.model
    if self._has_source:
      return isinstance(model, EncoderDecoder)
    return isinstance(model, Decoder) and not (model.config.window or model.config.window_layers)

  @property
  def _has_source(self) -> bool:
    return self.task.model.kind == "encoder_decoder"

  def _context(self, row: Row) -> int:
    """Returns the number of tokens before the first target, or of the source."""
    return len(row.inputs) - (0 if self._has_source else len(row.targets) - 1)

  def groups(self, rows: Sequence[Row]) -> list[Group]:
    """Returns the rows that are computed together: those that follow the same context, where the model allows it."""
    if not self._shares:
      return [Group((i,), self._context(row), len(row.inputs), len(row.targets)) for i, row in enumerate(rows)]
    groups: dict[tuple, Group] = {}
    for i, row in enumerate(rows):
      context = row.inputs[: self._context(row)]
      own = 0 if self._has_source else len(row.targets) - 1
      key: tuple = context if len(context) >= SHARED else (i, None)
      if key in groups and max(groups[key].tokens + own, groups[key].targets + len(row.targets)) <= self.length:
        numbers, _, tokens, targets = groups[key]
        groups[key] = Group((*numbers, i), len(context), tokens + own, targets + len(row.targets))
        continue
      if key in groups:
        groups[i, None] = groups.pop(key)  # it is full
      groups[key] = Group((i,), len(context), len(row.inputs), len(row.targets))
    return list(groups.values())

  def batches(self, rows: Sequence[Row]) -> Iterator[Scored]:
    """Yields batches of rows: longest first, so that what does not fit fails at once."""
    groups = self.groups(rows)
    shapes = [self.shape(group) for group in groups]
    order = sorted(range(len(groups)), key=lambda i: (*(-size for size in shapes[i]), i))
    shards = self.layout.num_shards("batch")
    while order:
      shape = shapes[order[0]]
      same = [i for i in order if shapes[i] == shape]
      apart = shape[1] if self.task.model.kind == "encoder_decoder" else 0
      most = max(self.tokens // (shape[0] + apart), 1)
      size = min(most, 1 << (len(same) - 1).bit_length())
      size = -(-size // shards) * shards
      for first in range(0, len(same), size):
        yield self.batch(rows, [groups[i] for i in same[first : first + size]], size, *shape[:2])
      order = [i for i in order if shapes[i] != shape]

  def shape(self, group: Group) -> tuple[int, int, bool]:
    """Returns the padded tokens and targets of a group, and whether a context is shared in it."""
    targets = _bucket(group.targets) if self.task.model.kind == "encoder_decoder" else _few(group.targets)
    return min(_bucket(group.tokens), self.length), targets, len(group.numbers) > 1

  def batch(self, rows: Sequence[Row], groups: Sequence[Group], size: int, length: int, targets: int) -> Scored:
    """Returns a batch of `size` rows, the last of which are empty, in the keys of the task's kind of model."""
    kind = self.task.model.kind
    singles = [rows[group.numbers[0]] for group in groups]
    at, wanted = np.zeros((size, targets), np.int32), np.zeros((size, targets), np.int32)
    where = []
    for b, group in enumerate(groups):
      column, after = 0, group.context
      for number in group.numbers:
        end = column + len(rows[number].targets)
        wanted[b, column:end], own = rows[number].targets, np.arange(end - column)
        if kind == "encoder":
          at[b, column:end] = own
        elif kind == "encoder_decoder":
          at[b, column:end] = column + own
        else:  # the end of the context, then the places of the continuation
          at[b, column:end] = np.where(own == 0, group.context - 1, after + own - 1)
        where.append((number, b, column, end))
        column, after = end, after + end - column - 1
    if kind == "bidirectional_lm":
      return Scored(self._spelled(singles, size, length), at, wanted, where)
    if kind == "decoder" and getattr(self.task.model.config, "prefix", False):
      prefix = {"prefix": _pad([(1,) * group.context for group in groups], size, length)}
    else:
      prefix = {}
    shared = any(len(group.numbers) > 1 for group in groups)
    if shared and kind == "decoder":
      return Scored(_shared(rows, groups, size, length) | prefix, at, wanted, where)
    batch = prefix | {"inputs": _pad([row.inputs for row in singles], size, length)}
    batch["segments"] = _pad([(1,) * len(row.inputs) for row in singles], size, length)
    batch["positions"] = np.broadcast_to(np.arange(length, dtype=np.int32), (size, length)).copy()
    if kind == "encoder":
      batch["token_types"] = np.zeros((size, length), np.int32)
      batch["masked_positions"] = _pad([row.masked for row in singles], size, 1)
      batch["labels"] = wanted[:, :1]
      batch["weights"] = np.ones((size, 1), np.float32)
    elif kind == "encoder_decoder":
      batch |= _decoded([[rows[i].targets for i in group.numbers] for group in groups], size, targets, self.start or 0)
      batch["targets"] = wanted
      if not shared:
        del batch["decoder_allowed"]
    else:
      batch["targets"] = np.zeros_like(batch["inputs"])  # which a task reads, but only to return them
    return Scored(batch, at, wanted, where)

  def _spelled(self, rows: Sequence[Row], size: int, length: int) -> Batch:
    """Returns a batch of words as characters, each row between `<S>` and `</S>`."""
    longest = self.task.spec(1, 1)["characters"].shape[2]
    characters = np.zeros((size, length + 2, longest), np.int32)
    for i, row in enumerate(rows):
      words = (SPECIAL[0], *row.inputs, SPECIAL[1])
      characters[i, : len(words)] = [spell(str(word), longest) for word in words]
    return {"characters": characters}

  def each_token(self, params: Tree, rows: Sequence[Row]) -> Iterator[tuple[list[int], list[np.ndarray]]]:
    """Yields (numbers of rows, log p of each one's targets), a batch at a time."""
    for numbers, log_probs, _ in self._each(params, rows):
      yield numbers, log_probs

  def __call__(self, params: Tree, rows: Sequence[Row]) -> Iterator[tuple[list[int], np.ndarray, np.ndarray]]:
    """Yields (numbers of rows, their log-likelihoods, whether they are greedy), a batch at a time."""
    for numbers, log_probs, best in self._each(params, rows):
      yield numbers, np.array([values.sum(dtype=np.float64) for values in log_probs]), np.array([b.all() for b in best])

  def _each(self, params: Tree, rows: Sequence[Row]) -> Iterator[tuple[list[int], list[np.ndarray], list[np.ndarray]]]:
    """Yields numbers of rows, log p of their targets, and whether greedy decoding gives each of them."""
    score = compiled(self.task, self.layout)
    for batch, at, targets, where in self.batches(rows):
      own = self.layout.sharding("batch", None, shape=at.shape)
      placed = jax.device_put((batch, at, targets), (self.layout.batch(batch), own, own))
      log_probs, best = map(np.asarray, score(params, *placed))
      cut = lambda x: [x[b, first:end] for _, b, first, end in where]  # noqa: B023, E731
      yield [number for number, *_ in where], cut(log_probs), cut(best)


@functools.lru_cache(4)
def compiled(task: Task, layout: Layout) -> Callable[..., tuple[jax.Array, jax.Array]]:
  """Returns what scores a batch; the same for all suites of a model, so that each shape is compiled once."""

  def score(params: Tree, batch: Batch, at: jax.Array, targets: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Returns log p [B, T] of targets at some positions [B, T], and whether they are the most probable tokens."""
    if task.model.kind == "bidirectional_lm":
      return _both_directions(task, params, batch, at, targets)
    x, table, _ = task.scored(params, batch)
    return _scores(_at(x, at), table, targets, task.model.config.vocabulary)

  return jit(score, out_shardings=(layout.sharding(), layout.sharding()))


def _both_directions(
  task: Task, params: Tree, batch: Batch, at: jax.Array, targets: jax.Array
) -> tuple[jax.Array, jax.Array]:
  """Returns the mean log p of ELMo's directions [B, T], and whether the words are the most probable ones forwards."""
  both, width = task.hidden(params, batch).tokens, task.model.config.width
  # Each word lies between two others: forwards, the one before it predicts it, backwards the one after it.
  forwards, backwards = _at(both[:, :-2, :width], at), _at(both[:, 2:, width:], at)
  table, size = task.head("softmax", params, forwards), task.model.config.vocabulary
  log_probs, best = _scores(forwards, table, targets, size)
  return (log_probs + _scores(backwards, table, targets, size)[0]) / 2, best


def _shared(rows: Sequence[Row], groups: Sequence[Group], size: int, length: int) -> Batch:
  """Returns a batch for a decoder: contexts with their continuations, which do not attend to each other."""
  inputs, positions = np.zeros((size, length), np.int32), np.zeros((size, length), np.int32)
  allowed = np.broadcast_to(np.eye(length, dtype=bool), (size, length, length)).copy()
  for b, (numbers, context, *_) in enumerate(groups):
    inputs[b, :context], positions[b, :context] = rows[numbers[0]].inputs[:context], np.arange(context)
    allowed[b, :, :context] = True  # but for what comes later, which a decoder never reads
    first = context
    for number in numbers:
      own = rows[number].inputs[context:]
      end = first + len(own)
      inputs[b, first:end], positions[b, first:end] = own, context + np.arange(len(own))
      allowed[b, first:end, first:end] = True
      first = end
  return {"inputs": inputs, "positions": positions, "allowed": allowed, "targets": np.zeros_like(inputs)}


def _decoded(targets: Sequence[Sequence[Sequence[int]]], size: int, length: int, start: int) -> Batch:
  """Returns what a decoder reads after a source: the targets of each row side by side, which do not see each other."""
  inputs, positions, segments = (np.zeros((size, length), np.int32) for _ in range(3))
  allowed = np.broadcast_to(np.eye(length, dtype=bool), (size, length, length)).copy()
  for b, row in enumerate(targets):
    first = 0
    for own in row:
      end = first + len(own)
      inputs[b, first:end], positions[b, first:end] = (start, *own[:-1]), np.arange(len(own))
      segments[b, first:end], allowed[b, first:end, first:end] = 1, True
      first = end
  keys = ("decoder_inputs", "decoder_positions", "decoder_segments", "decoder_allowed")
  return dict(zip(keys, (inputs, positions, segments, allowed), strict=True))


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


def _few(targets: int) -> int:
  """Returns a number of targets of which there are few."""
  size = SHORTEST
  while size < targets:
    size *= 4
  return size


def _pad(rows: Sequence[Sequence[int]], size: int, length: int) -> np.ndarray:
  padded = np.zeros((size, length), np.int32)
  for i, row in enumerate(rows):
    padded[i, : len(row)] = row
  return padded
