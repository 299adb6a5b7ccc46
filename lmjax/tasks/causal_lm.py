"""Causal language modelling: predict every token from those before it."""

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
class CausalLM(Base):
  """-log p(target | tokens before it in the same document), the mean over weighted tokens.

  `z_loss` adds z_loss * (log Z)^2; `chunk` is how many positions are scored against the vocabulary at a time (0: all);
  with `packed`, batches carry segments and positions, and documents in one row never see each other.
  """

  z_loss: float = 0.0
  chunk: int = 0
  packed: bool = True

  def spec(self, batch: int, length: int) -> Spec:
    integers = ("inputs", "targets", "positions", "segments") if self.packed else ("inputs", "targets")
    spec = {key: jax.ShapeDtypeStruct((batch, length), jnp.int32) for key in integers}
    return spec | {"weights": jax.ShapeDtypeStruct((batch, length), jnp.float32)}

  def counts(self, batch: Batch) -> dict[str, jax.Array]:
    return {"loss": jnp.sum(batch["weights"])}

  def loss(
    self, params: Tree, frozen: Mapping[str, FrozenModel], carry: Tree, batch: Batch, *, rng: jax.Array | None = None
  ) -> tuple[dict[str, Mean], Tree]:
    return self.score(params, self.hidden(params, batch, rng=rng).tokens, batch), carry

  def scored(self, params: Tree, batch: Batch, rng: jax.Array | None = None) -> tuple[jax.Array, Table, jax.Array]:
    return self.hidden(params, batch, rng=rng).tokens, self.model.unembedding(params["model"]), batch["targets"]

  def score(self, params: Tree, hidden_BxLxD: jax.Array, batch: Batch) -> dict[str, Mean]:
    """Returns the loss and the metrics of final vectors."""
    loss, totals = cross_entropy(
      hidden_BxLxD, self.model.unembedding(params["model"]), batch["targets"], batch["weights"],
      self.model.config.vocabulary, self.z_loss, self.chunk,
    )  # fmt: skip
    count = jnp.sum(batch["weights"])
    return {"loss": Mean(loss, count), "nll": Mean(totals["nll"], count), "accuracy": Mean(totals["correct"], count)}
