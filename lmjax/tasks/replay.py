"""Distillation without the teacher: its most probable words or classes of every row come from the disk."""

import dataclasses
import functools
from collections.abc import Iterable, Mapping
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.scipy.special import xlogy

from lmjax.data.batch import Batch
from lmjax.data.cached_scores import Cached
from lmjax.layers.leaves import dense
from lmjax.models.base import Table
from lmjax.parallel.sharding import current_layout
from lmjax.tasks.base import Collected, Frozen, FrozenModel, Spec
from lmjax.tasks.distill import Distill, OnePass, named, predicts_tokens, weights_of
from lmjax.tasks.log_probs import map_rows, table_logits
from lmjax.utils.errors import UserError
from lmjax.utils.metrics import Mean
from lmjax.utils.pytree import Tree

IDS, LOG_PROBS = "teacher_ids", "teacher_log_probs"


@dataclasses.dataclass(frozen=True)
class Replay(Distill):
  """`Distill` with the soft targets that `lmjax teacher` has written.

    soft = T^2 (sum over the top k of p log(p / q) + r log(r / s)),  r = 1 - sum of p,  s = 1 - sum of q

  p are the teacher's probabilities of its k most probable words or classes at temperature T, q the student's of the
  same ones: the divergence of k + 1 outcomes, of which the last is all others. It is at most that of all words, and
  equal to it where k is the vocabulary.

  scores: the folder. top: k, that of the folder. The temperature is that of the folder, too. Hidden states, attention
  maps and values are not in it: their weights are 0. Evaluations during the run read rows that the teacher has not
  read: there `soft` is 0.

  Raises:
    UserError: in `collect`, where a row of the data is not in the folder, or it has another top or temperature.
  """

  scores: str = ""
  top: int = 0
  collects: ClassVar[bool] = True  # its batches are those of the data, with what the teacher predicts

  def __post_init__(self):
    super().__post_init__()
    if not self.scores or self.top < 1:
      raise ValueError("scores names the folder that lmjax teacher has written, and top is its number of words")
    if self.hidden_weight or self.attention_weight or self.values_weight:
      raise ValueError("hidden states, attention maps and values are not in the folder of scores: their weights are 0")
    if not predicts_tokens(self.task) and not getattr(self.task, "labels", ()):
      raise ValueError(f"task: {type(self.task).__name__} has neither words nor classes, of which scores are kept")

  def frozen(self) -> dict[str, Frozen]:
    return {}

  def reads(self, batch: int, length: int) -> Spec:
    return self.task.spec(batch, length)

  def spec(self, batch: int, length: int) -> Spec:
    spec = self.task.spec(batch, length)
    shape = (*weights_of(spec).shape, self.top)
    return spec | {IDS: jax.ShapeDtypeStruct(shape, jnp.int32), LOG_PROBS: jax.ShapeDtypeStruct(shape, jnp.float32)}

  @functools.cached_property
  def _cached(self) -> Cached:
    cached = Cached(self.scores)
    for name in ("top", "temperature"):
      if (stored := cached.settings[name]) != getattr(self, name):
        raise UserError(f"config.task.{name} is {getattr(self, name)}, and {self.scores} was written with {stored}")
    return cached

  def collect(
    self, params: Tree, frozen: Mapping[str, FrozenModel], carry: Tree, batch: Batch, rng: jax.Array
  ) -> Iterable[Collected]:
    """Yields the batch with the teacher's predictions; see `Base.collect`."""
    several = jax.process_count() > 1
    rows = multihost_utils.process_allgather(batch, tiled=True) if several else jax.tree.map(np.asarray, batch)
    scores: Batch = dict(zip((IDS, LOG_PROBS), self._cached.rows(rows), strict=True))
    layout = current_layout()
    if layout is not None:
      scores = layout.shard_batch(scores, scores, list(range(len(scores[IDS]))))
    yield Collected(dict(batch) | scores)

  def loss(
    self, params: Tree, frozen: Mapping[str, FrozenModel], carry: Tree, batch: Batch, *, rng: jax.Array | None = None
  ) -> tuple[dict[str, Mean], Tree]:
    student, weights = OnePass(self.task, params, rng, ()), weights_of(batch)
    own, _ = student.task.loss(params, {}, {}, batch, rng=rng)
    terms = {named(name): mean for name, mean in own.items()}
    count = jnp.sum(weights)
    if IDS not in batch:
      return terms | {"soft": Mean(jnp.zeros_like(count), count)}, carry
    wanted = batch[IDS], batch[LOG_PROBS]
    if predicts_tokens(self.task):
      x, table, _ = student.task.scored(params, batch, rng)
      soft = _by_rows(x, table, self.model.config.vocabulary, *wanted, self.temperature)
    else:
      soft = divergence(student.outputs(batch).logits, *wanted, self.temperature)
    return terms | {"soft": Mean(jnp.sum(weights * soft), count)}, carry


def divergence(scores: jax.Array, ids: jax.Array, log_probs: jax.Array, temperature: float) -> jax.Array:
  """Returns the divergence [...] of scores [..., V] from the k probabilities [..., k] of a teacher; see `Replay`."""
  log_q = jnp.take_along_axis(jax.nn.log_softmax(scores.astype(jnp.float32) / temperature), ids, axis=-1)
  apart = jnp.sum(jnp.exp(log_probs) * (log_probs - log_q), axis=-1)
  if ids.shape[-1] < scores.shape[-1]:
    rest = jnp.maximum(1 - jnp.sum(jnp.exp(log_probs), axis=-1), 0.0)
    others = jnp.maximum(1 - jnp.sum(jnp.exp(log_q), axis=-1), 1e-7)
    apart += xlogy(rest, rest) - rest * jnp.log(others)
  return temperature**2 * apart


def _by_rows(
  x_BxLxD: jax.Array, table: Table, vocabulary: int, ids: jax.Array, log_probs: jax.Array, temperature: float
) -> jax.Array:
  """Returns the divergence [B, L] of words, as `map_rows` does."""

  def row(table, x_LxD, ids_LxK, log_probs_LxK):
    return divergence(table_logits(x_LxD, table, vocabulary)[:, :vocabulary], ids_LxK, log_probs_LxK, temperature)

  return map_rows(row, table, x_BxLxD, ids, log_probs)


def predictions(distill: Distill, teacher: FrozenModel, batch: Batch, top: int) -> tuple[jax.Array, jax.Array]:
  """Returns the ids and log probabilities [..., top] that a teacher gives the words or classes of a batch.

  Raises:
    UserError: the teacher does not compute the task of the student, which has no words or classes, or not so many.
  """
  task = dataclasses.replace(distill.task, model=teacher.task.model)
  distill.check(OnePass(task, teacher.params, None, ()), batch)
  if predicts_tokens(task):
    vocabulary = task.model.config.vocabulary
    x, table, _ = task.scored(teacher.params, batch)
    table = table._replace(values=dense(table.values))
    scores = lambda x_LxD: table_logits(x_LxD, table, vocabulary)[:, :vocabulary]  # noqa: E731
  else:
    logits = task.forward(teacher.params, batch).logits
    if logits is None or logits.shape[-1] == 1 or logits.ndim != weights_of(batch).ndim + 1:
      raise UserError(f"teacher: {type(task).__name__} has neither words nor classes, of which scores could be kept")
    x, scores = logits, lambda row: row

  def row(x):
    log_probs, ids = jax.lax.top_k(jax.nn.log_softmax(scores(x).astype(jnp.float32) / distill.temperature), top)
    return ids, log_probs

  return jax.lax.map(row, x)
