"""Sequence to sequence: predict every token of a target from those before it and the whole source."""

import dataclasses
from collections.abc import Mapping

import jax
import jax.numpy as jnp

from lmjax.data.batch import Batch
from lmjax.models.base import Table
from lmjax.tasks.base import Base, FrozenModel, Spec
from lmjax.tasks.losses import cross_entropy
from lmjax.utils.metrics import Mean
from lmjax.utils.pytree import Tree


@dataclasses.dataclass(frozen=True)
class Seq2Seq(Base):
  """-log p(target | those before it, source), the mean over weighted target tokens.

  The data decides what is learned: translation, span corruption, consecutive sequences, any text to text.
  target_length: tokens of a target, which the data sets. smoothing: of labels in training (Vaswani et al., 2017,
  section 5.4); z_loss adds z_loss * (log Z)^2; chunk is how many positions are scored against the vocabulary at a time
  (0: all).
  """

  target_length: int = 0  # 0: as long as the source
  smoothing: float = 0.0
  z_loss: float = 0.0
  chunk: int = 0

  def __post_init__(self):
    if not 0 <= self.smoothing < 1 or self.target_length < 0:
      raise ValueError("smoothing is at least 0 and below 1, target_length at least 0")

  def spec(self, batch: int, length: int) -> Spec:
    source, target = (batch, length), (batch, self.target_length or length)
    spec = {key: jax.ShapeDtypeStruct(source, jnp.int32) for key in ("inputs", "positions", "segments")}
    keys = ("decoder_inputs", "targets", "decoder_positions", "decoder_segments")
    spec |= {key: jax.ShapeDtypeStruct(target, jnp.int32) for key in keys}
    return spec | {"weights": jax.ShapeDtypeStruct(target, jnp.float32)}

  def counts(self, batch: Batch) -> dict[str, jax.Array]:
    return {"loss": jnp.sum(batch["weights"])}

  def loss(
    self, params: Tree, frozen: Mapping[str, FrozenModel], carry: Tree, batch: Batch, *, rng: jax.Array | None = None
  ) -> tuple[dict[str, Mean], Tree]:
    x_BxLxD, table, targets_BxL = self.scored(params, batch, rng)
    loss, totals = cross_entropy(
      x_BxLxD, table, targets_BxL, batch["weights"], self.model.config.vocabulary, self.z_loss, self.chunk,
      smoothing=0.0 if rng is None else self.smoothing,
    )  # fmt: skip
    count = jnp.sum(batch["weights"])
    metrics = {"nll": Mean(totals["nll"], count), "accuracy": Mean(totals["correct"], count)}
    return {"loss": Mean(loss, count)} | metrics, carry

  def scored(self, params: Tree, batch: Batch, rng: jax.Array | None = None) -> tuple[jax.Array, Table, jax.Array]:
    return self.hidden(params, batch, rng=rng).tokens, self.model.unembedding(params["model"]), batch["targets"]
