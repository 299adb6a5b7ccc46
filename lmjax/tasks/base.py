"""Task: what a run learns. There is one training loop; what differs between runs is a task."""

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax import struct

from lmjax.data.batch import Batch
from lmjax.layers.leaves import cast
from lmjax.models.base import Hidden, Table
from lmjax.tasks.log_probs import token_log_probs
from lmjax.utils.errors import UserError
from lmjax.utils.metrics import Mean
from lmjax.utils.pytree import Tree

Spec = dict[str, jax.ShapeDtypeStruct]


@struct.dataclass
class Outputs:
  """What a task computes of a batch, without a loss.

  hidden: final vectors [B, L, D]. logits: the scores of the task's head, [B, L, V] of tokens, [B, classes] of rows or
  [B, L, classes] of tokens; None without a head. taps by name. pooled: [B, D] where the model has a pooler.
  """

  hidden: jax.Array
  logits: jax.Array | None
  taps: dict[str, jax.Array]
  pooled: jax.Array | None = None


@dataclasses.dataclass(frozen=True)
class Frozen:
  """A model that a run reads and does not train: a teacher, a reference model, a reward model.

  path: a run folder or a Hugging Face folder. dtype: of its parameters and its computation; norms stay float32.
  step: of a run, None for the latest checkpoint.
  """

  path: str
  dtype: str = "bfloat16"
  step: int | None = None

  def __post_init__(self):
    if self.dtype not in ("float32", "bfloat16"):
      raise ValueError(f"dtype is float32 or bfloat16, not {self.dtype!r}")


@struct.dataclass
class FrozenModel:
  """A loaded `Frozen`: its task, which has the model, and its parameters."""

  task: "Base" = struct.field(pytree_node=False)
  params: Tree


class Collected(NamedTuple):
  """A batch to train on, and metrics of how it was collected."""

  batch: Batch
  metrics: Mapping[str, float] = {}


@dataclasses.dataclass(frozen=True)
class Base:
  """What all tasks share; a task defines `spec`, `counts`, `loss`, and `scored` where it predicts tokens.

  A task is a frozen dataclass that holds a model; its methods are pure, but for `collect`. Parameters are always
  {"model": ..., "heads": {...}}. `terms` names the loss terms and their coefficients: the loss is the sum over terms of
  coefficient * total / count, with the counts of the whole global batch.
  """

  model: nn.Module

  terms: ClassVar[Mapping[str, float]] = {"loss": 1.0}
  whole_batch: ClassVar[bool] = False  # whether the loss compares rows, so that microbatches would change it
  collects: ClassVar[bool] = False  # whether `collect` makes batches of its own

  def spec(self, batch: int, length: int) -> Spec:
    """Returns the shapes and types of the batch that `loss` takes."""
    raise NotImplementedError

  def counts(self, batch: Batch) -> dict[str, jax.Array]:
    """Returns the denominator of each loss term over the whole global batch."""
    raise NotImplementedError

  def loss(
    self, params: Tree, frozen: Mapping[str, FrozenModel], carry: Tree, batch: Batch, *, rng: jax.Array | None = None
  ) -> tuple[dict[str, Mean], Tree]:
    """Returns (total, count) of each loss term and metric, and the next carry; without rng, no dropout."""
    raise NotImplementedError

  def scored(self, params: Tree, batch: Batch, rng: jax.Array | None = None) -> tuple[jax.Array, Table, jax.Array]:
    """Returns the vectors [B, L, D] that predict tokens, what scores them, and the targets [B, L]."""
    raise NotImplementedError(f"{type(self).__name__} does not predict tokens")

  def reads(self, batch: int, length: int) -> Spec:
    """Returns the shapes and types of the data's batches; not those of `spec` where `collect` makes its own."""
    return self.spec(batch, length)

  def heads(self) -> dict[str, nn.Module]:
    """Returns the modules on top of the model, by name; each takes vectors [B, L, D]."""
    return {}

  def frozen(self) -> dict[str, Frozen]:
    """Returns the models that the run reads and does not train, by name."""
    return {}

  def init(self, rng: jax.Array, batch: Batch) -> Tree:
    """Returns new parameters with their logical axis names (see parallel.sharding.LogicallyPartitioned)."""
    heads = self.heads()
    first, *rest = jax.random.split(rng, 1 + len(heads)) if heads else (rng,)
    row = {key: value[:1] for key, value in batch.items()}
    x = jnp.zeros((1, 1, self.model.config.width))
    new = {name: head.init(key, x) for (name, head), key in zip(heads.items(), rest, strict=True)}
    return {"model": self.model.init(first, row)["params"], "heads": {k: v["params"] for k, v in new.items()}}

  def initial_carry(self, batch: int) -> Tree:
    """Returns what the task remembers from step to step."""
    return {}

  def hidden(self, params: Tree, batch: Batch, *, rng: jax.Array | None = None, taps: tuple[str, ...] = ()) -> Hidden:
    """Returns the model's forward pass in its compute dtype; without rng, no dropout."""
    hidden: Hidden = self.model.apply({"params": self.compute(params)}, batch, taps=taps, rngs=self.rngs(rng))
    return hidden

  def compute(self, params: Tree) -> Tree:
    """Returns the model's parameters in its compute dtype."""
    return cast(params["model"], jnp.dtype(self.model.config.dtype))

  def rngs(self, rng: jax.Array | None) -> dict[str, jax.Array]:
    """Returns the random streams of a forward pass."""
    return {} if rng is None else {"dropout": rng}

  def head(self, name: str, params: Tree, x: jax.Array) -> Any:
    """Returns what a head computes of vectors."""
    return self.heads()[name].apply({"params": params["heads"][name]}, x)

  def forward(self, params: Tree, batch: Batch, *, rng: jax.Array | None = None, taps: tuple[str, ...] = ()) -> Outputs:
    """Returns final vectors, the scores of every token [B, L, V], and taps."""
    hidden = self.hidden(params, batch, rng=rng, taps=taps)
    logits = self.model.apply({"params": params["model"]}, hidden.tokens, method="logits")
    return Outputs(hidden.tokens, logits, hidden.taps, hidden.pooled)

  def log_probs(self, params: Tree, batch: Batch, *, rng: jax.Array | None = None) -> jax.Array:
    """Returns log p(target) of every target token [B, L], float32, differentiable; padding included."""
    x, table, targets = self.scored(params, batch, rng)
    return token_log_probs(x, table, targets, self.model.config.vocabulary)

  def collect(
    self, params: Tree, frozen: Mapping[str, FrozenModel], carry: Tree, batch: Batch, rng: jax.Array
  ) -> Iterable[Collected]:
    """Yields the batches to train on, one update each, and metrics to log; by default the given batch.

    Called between updates, outside the compiled step, where `collects` is true. params are those the model sees, as
    they were before the first yield. batch is on the mesh and so must be what is yielded; it has the keys of `reads`,
    and what is yielded those of `spec`. rng is new at every call, a function of the number of calls: a run that is
    interrupted repeats the call, since checkpoints and evaluations fall between calls only.
    """
    yield Collected(batch)


Task = Base  # the type of any task


def weighted_sum(task: Base, terms: Mapping[str, Mean], counts: Mapping[str, jax.Array]) -> jax.Array:
  """Returns the loss: sum over the task's terms of coefficient * total / count of the whole global batch."""
  coefficients = task.terms
  if not counts.keys() == coefficients.keys() <= terms.keys():
    raise UserError(f"task: {type(task).__name__} has the terms {[*coefficients]} and counts of {[*counts]}")
  parts = (coefficients[key] * (terms[key].total / jnp.maximum(count, 1e-9)) for key, count in counts.items())
  loss: jax.Array = sum(parts)  # not the int 0: a task has at least one term
  return loss
