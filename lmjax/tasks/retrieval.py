"""A retriever: vectors of questions that are near those of the paragraphs that answer them."""

import dataclasses
from collections.abc import Mapping
from typing import ClassVar

import jax
import jax.numpy as jnp
from flax import linen as nn

from lmjax.data.batch import Batch
from lmjax.tasks.base import FrozenModel, Outputs, Spec
from lmjax.tasks.downstream import Downstream, segment_means
from lmjax.utils.metrics import Mean
from lmjax.utils.pytree import Tree

NONE = -1e9  # the score of a paragraph that is not there; finite, so that the loss of a row of padding is, too


@dataclasses.dataclass(frozen=True)
class Retrieval(Downstream):
  """-log p(paragraph | question), the mean over weighted rows (Karpukhin et al., 2020, arXiv:2004.04906, equation 2).

    p(paragraph | question) = softmax over all paragraphs of the batch of sim(question, paragraph) / temperature

  A row has a question, its paragraph and `negatives` hard negatives as its segments; those of all other rows are
  negatives, too, except where a paragraph is the same as the right one. sim is the product of the means over tokens;
  `normalize` scales these to length 1. Metric: accuracy, of questions whose paragraph has the largest score.

  The softmax is over the whole global batch, so that a batch cannot be cut into microbatches.
  """

  negatives: int = 1
  temperature: float = 0.05
  normalize: bool = True
  whole_batch: ClassVar[bool] = True

  def __post_init__(self):
    super().__post_init__()
    if self.negatives < 0 or not 0 < self.temperature < 1e3:
      raise ValueError("negatives is at least 0, and temperature above 0 and below 1,000")

  def spec(self, batch: int, length: int) -> Spec:
    return self.inputs(batch, length) | {"row_weights": jax.ShapeDtypeStruct((batch,), jnp.float32)}

  def heads(self) -> dict[str, nn.Module]:
    return self.mix()

  def counts(self, batch: Batch) -> dict[str, jax.Array]:
    return {"loss": jnp.sum(batch["row_weights"])}

  def forward(self, params: Tree, batch: Batch, *, rng: jax.Array | None = None, taps: tuple[str, ...] = ()) -> Outputs:
    """Returns the final vectors, and as scores the vector [B, 2 + negatives, D] of each segment."""
    hidden = self.vectors(params, batch, rng)
    x_BxSxD = segment_means(hidden.tokens, batch["segments"], 2 + self.negatives, self.normalize)
    return Outputs(hidden.tokens, x_BxSxD, hidden.taps, hidden.pooled)

  def loss(
    self, params: Tree, frozen: Mapping[str, FrozenModel], carry: Tree, batch: Batch, *, rng: jax.Array | None = None
  ) -> tuple[dict[str, Mean], Tree]:
    x_BxSxD, weights = self.forward(params, batch, rng=rng).logits, batch["row_weights"]
    questions_BxD, right_BxD = x_BxSxD[:, 0], x_BxSxD[:, 1]
    scores_BxBxK = jnp.einsum("bd,ckd->bck", questions_BxD, x_BxSxD[:, 1:]) / self.temperature
    right_B = jnp.einsum("bd,bd->b", questions_BxD, right_BxD) / self.temperature
    keys_BxK, exists_BxK = self._keys(batch)
    other_BxBxK = (keys_BxK[None] != keys_BxK[:, :1, None]) & exists_BxK[None]
    others_BxN = jnp.where(other_BxBxK, scores_BxBxK, NONE).reshape(len(weights), -1)
    nll_B = jax.nn.logsumexp(jnp.concatenate([right_B[:, None], others_BxN], axis=1), axis=1) - right_B
    correct_B = (right_B > jnp.max(others_BxN, axis=1)).astype(jnp.float32)
    count = jnp.sum(weights)
    values = {"loss": nll_B, "accuracy": correct_B}
    return {name: Mean(jnp.sum(weights * value), count) for name, value in values.items()}, carry

  def _keys(self, batch: Batch) -> tuple[jax.Array, jax.Array]:
    """Returns a hash of the ids of each paragraph [B, 1 + negatives], equal for equal ones, and whether it exists."""
    numbers_K = jnp.arange(2, 3 + self.negatives)
    own_BxKxL = batch["segments"][:, None] == numbers_K[None, :, None]
    ids_BxL, places_BxL = (batch[key].astype(jnp.uint32) for key in ("inputs", "positions"))
    mixed_BxL = (ids_BxL + 1) * (2 * places_BxL + 1) * jnp.uint32(2654435761)
    mixed_BxL = (mixed_BxL ^ (mixed_BxL >> 15)) * jnp.uint32(2246822519)  # of the finaliser of xxHash32
    keys_BxK = jnp.sum(jnp.where(own_BxKxL, mixed_BxL[:, None], 0), axis=2, dtype=jnp.uint32)
    return keys_BxK, jnp.any(own_BxKxL, axis=2)
