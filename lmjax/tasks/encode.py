"""Reading only: a model's vectors, and the scores of a head of classes where it has one."""

import dataclasses

import jax
import jax.numpy as jnp
from flax import linen as nn

from lmjax.data.batch import Batch
from lmjax.layers.einsum import cast
from lmjax.models.heads import Classifier
from lmjax.tasks.base import Outputs
from lmjax.utils.pytree import Tree


@dataclasses.dataclass(frozen=True)
class Encode:
  """A model of any family as one that reads; there is no loss, so it cannot be trained.

  head: scores classes, if there is one; its parameters are heads/`labels`. labels: what it scores, the whole
  `sequence`, its `tokens`, or for each of them whether a `span` starts or ends there. reads: the vector that stands for
  a sequence, `pooled` by an encoder's pooler, the `first` or the `last` of its tokens.
  """

  model: nn.Module
  head: Classifier | None = None
  labels: str = "sequence"
  reads: str = "pooled"

  def spec(self, batch: int, length: int) -> dict[str, jax.ShapeDtypeStruct]:
    keys = ("inputs", "token_types", "positions", "segments")
    return {key: jax.ShapeDtypeStruct((batch, length), jnp.int32) for key in keys}

  def init(self, rng: jax.Array, batch: Batch) -> Tree:
    first, second = jax.random.split(rng)
    shown = [batch["inputs"][:1]] * (2 if hasattr(self.model, "read") else 1)
    heads = {}
    if self.head:
      heads[self.labels] = self.head.init(second, jnp.zeros((1, self.model.config.width)))["params"]
    return {"model": self.model.init(first, *shown)["params"], "heads": heads}

  def forward(self, params: Tree, batch: Batch, *, rng: jax.Array | None = None, taps: tuple[str, ...] = ()) -> Outputs:
    """Returns the final vectors, and as scores those of the head, [B, classes] or [B, L, classes].

    Without a head the scores are the pooled vectors [B, D], None where there is no pooler.
    """
    hidden, pooled, tapped = self._read(cast(params["model"], jnp.dtype(self.model.config.dtype)), batch, taps)
    if not self.head:
      return Outputs(hidden, pooled, tapped)
    seen = hidden
    if self.labels == "sequence":
      last = jnp.maximum(jnp.sum(batch["segments"] > 0, axis=1) - 1, 0)
      seen = {"pooled": pooled, "first": hidden[:, 0], "last": hidden[jnp.arange(len(last)), last]}[self.reads]
    return Outputs(hidden, self.head.apply({"params": params["heads"][self.labels]}, seen), tapped)

  def _read(self, params: Tree, batch: Batch, taps: tuple[str, ...]):
    """Returns final vectors [B, L, D], pooled ones or None, and what was tapped."""
    ids, positions, segments = batch["inputs"], batch["positions"], batch["segments"]
    if hasattr(self.model, "read"):  # the decoder is given the source once more, one token late
      late = jnp.pad(ids, ((0, 0), (1, 0)))[:, :-1]
      inputs = (ids, late, positions, segments, positions, segments)
    else:
      inputs = (ids, positions, segments, *(() if self.model.causal else (batch["token_types"],)))
    found = self.model.apply({"params": params}, *inputs, taps=taps)
    return found if len(found) == 3 else (found[0], None, found[1])
