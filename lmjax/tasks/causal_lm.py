"""Causal language modelling: predict every token from those before it."""

import dataclasses
from collections.abc import Iterable

import jax
import jax.numpy as jnp
from flax import linen as nn

from lmjax.data.batch import Batch
from lmjax.layers.einsum import cast
from lmjax.tasks.base import Outputs
from lmjax.tasks.losses import cross_entropy
from lmjax.utils.metrics import Mean
from lmjax.utils.pytree import Tree


@dataclasses.dataclass(frozen=True)
class CausalLM:
  """-log p(target | tokens before it in the same document), the mean over weighted tokens.

  `z_loss` adds z_loss * (log Z)^2; `chunk` is how many positions are scored against the vocabulary at a time (0: all);
  with `packed`, batches carry segments and positions, and documents in one row never see each other.
  """

  model: nn.Module
  z_loss: float = 0.0
  chunk: int = 0
  packed: bool = True

  def spec(self, batch: int, length: int) -> dict[str, jax.ShapeDtypeStruct]:
    integers = ("inputs", "targets", "positions", "segments") if self.packed else ("inputs", "targets")
    spec = {key: jax.ShapeDtypeStruct((batch, length), jnp.int32) for key in integers}
    return spec | {"weights": jax.ShapeDtypeStruct((batch, length), jnp.float32)}

  def init(self, rng: jax.Array, batch: Batch) -> Tree:
    return {"model": self.model.init(rng, batch["inputs"][:1])["params"], "heads": {}}

  def initial_carry(self, batch: int) -> Tree:
    return {}

  def forward(self, params: Tree, batch: Batch, *, rng: jax.Array | None = None, taps: tuple[str, ...] = ()) -> Outputs:
    hidden, tapped = self._hidden(params, batch, rng, taps)
    return Outputs(hidden, self.model.apply({"params": params["model"]}, hidden, method="logits"), tapped)

  def counts(self, batch: Batch) -> dict[str, jax.Array]:
    return {"loss": jnp.sum(batch["weights"])}

  def loss(
    self, params: Tree, frozen: Tree, carry: Tree, batch: Batch, *, rng: jax.Array | None = None
  ) -> tuple[dict[str, Mean], Tree]:
    hidden, _ = self._hidden(params, batch, rng)
    return self.score(params, hidden, batch), carry

  def score(self, params: Tree, hidden_BxLxD: jax.Array, batch: Batch) -> dict[str, Mean]:
    """Returns the loss and the metrics of final vectors."""
    loss, totals = cross_entropy(
      hidden_BxLxD, self.model.unembedding(params["model"]), batch["targets"], batch["weights"],
      self.model.config.vocabulary, self.z_loss, self.chunk,
    )  # fmt: skip
    count = jnp.sum(batch["weights"])
    return {"loss": Mean(loss, count), "nll": Mean(totals["nll"], count), "accuracy": Mean(totals["correct"], count)}

  def collect(self, state, batch: Batch, rng: jax.Array) -> Iterable[Batch]:
    return (batch,)

  def _hidden(self, params: Tree, batch: Batch, rng: jax.Array | None, taps: tuple[str, ...] = ()):
    """Returns the final vectors in the compute dtype."""
    compute = cast(params["model"], jnp.dtype(self.model.config.dtype))
    rngs = {} if rng is None else {"dropout": rng}
    return self.model.apply(
      {"params": compute},
      batch["inputs"],
      batch.get("positions"),
      batch.get("segments"),
      taps=taps,
      rngs=rngs,
    )
