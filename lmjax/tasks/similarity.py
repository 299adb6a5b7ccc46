"""How alike two texts are: the cosine between their vectors."""

import dataclasses
from collections.abc import Mapping

import jax
import jax.numpy as jnp
from flax import linen as nn

from lmjax.data.batch import Batch
from lmjax.tasks.base import FrozenModel, Outputs, Spec
from lmjax.tasks.downstream import Downstream, segment_means
from lmjax.utils.metrics import Mean
from lmjax.utils.pytree import Tree


@dataclasses.dataclass(frozen=True)
class Similarity(Downstream):
  """(highest * cos(u, v) - value)^2, the mean over weighted rows (Reimers and Gurevych, 2019, arXiv:1908.10084).

  u and v are the means over the tokens of the two texts of a row, its segments 1 and 2. Neither is read
  with the other, so that the model also gives vectors of single texts, to `lmjax embed` and `lmjax index`. It has no
  head.

  highest: the value of two texts with the same vector, such as 5 in STS-B.
  """

  highest: float = 1.0

  def __post_init__(self):
    super().__post_init__()
    if not 0 < self.highest < 1e6:
      raise ValueError("highest is above 0")
    if self.labels:
      raise ValueError("a similarity is a number, and has no labels")

  def spec(self, batch: int, length: int) -> Spec:
    rows = {key: jax.ShapeDtypeStruct((batch,), jnp.float32) for key in ("row_weights", "values")}
    return self.inputs(batch, length) | rows

  def heads(self) -> dict[str, nn.Module]:
    return self.mix()

  def counts(self, batch: Batch) -> dict[str, jax.Array]:
    return {"loss": jnp.sum(batch["row_weights"])}

  def forward(self, params: Tree, batch: Batch, *, rng: jax.Array | None = None, taps: tuple[str, ...] = ()) -> Outputs:
    """Returns the final vectors, and as scores the value [B, 1] of each row."""
    hidden = self.vectors(params, batch, rng)
    u_BxD, v_BxD = jnp.unstack(segment_means(hidden.tokens, batch["segments"], 2, normalize=True), axis=1)
    return Outputs(hidden.tokens, self.highest * jnp.sum(u_BxD * v_BxD, axis=1)[:, None], hidden.taps, hidden.pooled)

  def loss(
    self, params: Tree, frozen: Mapping[str, FrozenModel], carry: Tree, batch: Batch, *, rng: jax.Array | None = None
  ) -> tuple[dict[str, Mean], Tree]:
    values, weights = self.forward(params, batch, rng=rng).logits[:, 0], batch["row_weights"]
    return {"loss": Mean(jnp.sum(weights * (values - batch["values"]) ** 2), jnp.sum(weights))}, carry
