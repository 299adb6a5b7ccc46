"""Task: what a run learns. The loop is one; everything that differs between runs is an object of this shape."""

from collections.abc import Iterable
from typing import Protocol

import jax
from flax import struct

from lmjax.data.batch import Batch
from lmjax.utils.metrics import Mean
from lmjax.utils.pytree import Tree


@struct.dataclass
class Outputs:
  """What a forward pass gives: final vectors [B, L, D], scores [B, L, V] and taps by name."""

  hidden: jax.Array
  logits: jax.Array
  taps: dict[str, jax.Array]


class Task(Protocol):
  """A frozen dataclass that knows a model, its batch and its loss; all methods are pure but `collect`.

  Parameters are always {"model": ..., "heads": {...}}.
  """

  def spec(self, batch: int, length: int) -> dict[str, jax.ShapeDtypeStruct]:
    """Returns the batch it takes."""

  def init(self, rng: jax.Array, batch: Batch) -> Tree:
    """Returns fresh parameters, named (see parallel.sharding.LogicallyPartitioned)."""

  def forward(self, params: Tree, batch: Batch, *, rng: jax.Array | None = None, taps: tuple[str, ...] = ()) -> Outputs:
    """Returns the outputs; without rng, deterministic ones."""

  def counts(self, batch: Batch) -> dict[str, jax.Array]:
    """Returns the denominator of each loss term over the whole global batch."""

  def loss(
    self, params: Tree, frozen: Tree, carry: Tree, batch: Batch, *, rng: jax.Array | None = None
  ) -> tuple[dict[str, Mean], Tree]:
    """Returns named terms, each (total, count), and the next carry; terms that `counts` does not name are metrics."""

  def initial_carry(self, batch: int) -> Tree:
    """Returns what the task remembers from step to step; {} for most."""

  def collect(self, state, batch: Batch, rng: jax.Array) -> Iterable[Batch]:
    """Yields the batches to learn from: by default the one that came; may not touch `state` after its first yield."""
