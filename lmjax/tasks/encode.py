"""Reading only: a model without a head, whose vectors are wanted and nothing else."""

import dataclasses

import jax
import jax.numpy as jnp
from flax import linen as nn

from lmjax.data.batch import Batch
from lmjax.layers.einsum import cast
from lmjax.tasks.base import Outputs
from lmjax.utils.pytree import Tree


@dataclasses.dataclass(frozen=True)
class Encode:
  """An encoder's vectors; there is no loss, so it cannot be trained."""

  model: nn.Module

  def spec(self, batch: int, length: int) -> dict[str, jax.ShapeDtypeStruct]:
    keys = ("inputs", "types", "positions", "segments")
    return {key: jax.ShapeDtypeStruct((batch, length), jnp.int32) for key in keys}

  def init(self, rng: jax.Array, batch: Batch) -> Tree:
    return {"model": self.model.init(rng, batch["inputs"][:1])["params"], "heads": {}}

  def forward(self, params: Tree, batch: Batch, *, rng: jax.Array | None = None, taps: tuple[str, ...] = ()) -> Outputs:
    """Returns the final vectors; the scores are the pooled vectors [B, D], where there is a pooler."""
    compute = cast(params["model"], jnp.dtype(self.model.config.dtype))
    keys = ("inputs", "positions", "segments", "types")
    hidden, pooled, tapped = self.model.apply({"params": compute}, *map(batch.get, keys), taps=taps)
    return Outputs(hidden, pooled, tapped)
