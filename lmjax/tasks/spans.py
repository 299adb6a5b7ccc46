"""The answer of a question as a span of its paragraph, by a model of any kind."""

import dataclasses
from collections.abc import Mapping

import jax
import jax.numpy as jnp
from flax import linen as nn

from lmjax.data.batch import Batch
from lmjax.models.heads import Classifier
from lmjax.tasks.base import FrozenModel, Outputs, Spec
from lmjax.tasks.downstream import Downstream
from lmjax.utils.metrics import Mean
from lmjax.utils.pytree import Tree


@dataclasses.dataclass(frozen=True)
class SpanExtraction(Downstream):
  """(-log p(start | row) - log p(end | row)) / 2, the mean over weighted rows (Devlin et al., 2019, section 4.2).

  p is over the tokens of the row; the first one says that the answer is not in it. The head `span` has two scores for
  every token.
  """

  def spec(self, batch: int, length: int) -> Spec:
    spec = self.inputs(batch, length) | {"row_weights": jax.ShapeDtypeStruct((batch,), jnp.float32)}
    return spec | {key: jax.ShapeDtypeStruct((batch,), jnp.int32) for key in ("starts", "ends")}

  def heads(self) -> dict[str, nn.Module]:
    return {"span": Classifier(2, parent=None)} | self.mix()

  def counts(self, batch: Batch) -> dict[str, jax.Array]:
    return {"loss": jnp.sum(batch["row_weights"])}

  def forward(self, params: Tree, batch: Batch, *, rng: jax.Array | None = None, taps: tuple[str, ...] = ()) -> Outputs:
    """Returns the final vectors, and for every token the scores [B, L, 2] that a span starts and ends there."""
    hidden = self.vectors(params, batch, rng)
    scores = self.head("span", params, self.drop(hidden.tokens, rng))
    return Outputs(hidden.tokens, scores, hidden.taps, hidden.pooled)

  def loss(
    self, params: Tree, frozen: Mapping[str, FrozenModel], carry: Tree, batch: Batch, *, rng: jax.Array | None = None
  ) -> tuple[dict[str, Mean], Tree]:
    scores, weights = self.forward(params, batch, rng=rng).logits, batch["row_weights"]
    # Finite, so that the loss of a row of padding is, too.
    masked = jnp.where(batch["segments"][..., None] > 0, scores, -1e9)
    log_probs = jax.nn.log_softmax(masked, axis=1)
    nll, right = jnp.zeros(len(weights)), jnp.ones(len(weights), bool)
    for side, key in enumerate(("starts", "ends")):
      nll -= jnp.take_along_axis(log_probs[..., side], batch[key][:, None], axis=1)[:, 0] / 2
      right &= jnp.argmax(masked[..., side], axis=1) == batch[key]
    count = jnp.sum(weights)
    return {"loss": Mean(jnp.sum(weights * nll), count), "accuracy": Mean(jnp.sum(weights * right), count)}, carry
