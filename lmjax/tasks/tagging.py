"""A tag for each word of a sentence, by a model of any kind."""

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
class Tagging(Downstream):
  """-log p(tag | sentence), the mean over weighted words; the first token of a word carries its tag.

  The head `tokens` scores the tags of every token, linearly. Of an encoder-decoder take the encoder alone, as
  transformers does: `model.decoder_depth=0`.
  """

  def spec(self, batch: int, length: int) -> Spec:
    spec = self.inputs(batch, length) | {"tags": jax.ShapeDtypeStruct((batch, length), jnp.int32)}
    return spec | {"weights": jax.ShapeDtypeStruct((batch, length), jnp.float32)}

  def heads(self) -> dict[str, nn.Module]:
    return {"tokens": Classifier(len(self.labels), parent=None)} | self.mix()

  def counts(self, batch: Batch) -> dict[str, jax.Array]:
    return {"loss": jnp.sum(batch["weights"])}

  def forward(self, params: Tree, batch: Batch, *, rng: jax.Array | None = None, taps: tuple[str, ...] = ()) -> Outputs:
    """Returns the final vectors, and the scores [B, L, tags] of every token."""
    hidden = self.vectors(params, batch, rng)
    scores = self.head("tokens", params, self.drop(hidden.tokens, rng))
    return Outputs(hidden.tokens, scores, hidden.taps, hidden.pooled)

  def loss(
    self, params: Tree, frozen: Mapping[str, FrozenModel], carry: Tree, batch: Batch, *, rng: jax.Array | None = None
  ) -> tuple[dict[str, Mean], Tree]:
    scores, weights = self.forward(params, batch, rng=rng).logits, batch["weights"]
    nll = -jnp.take_along_axis(jax.nn.log_softmax(scores), batch["tags"][..., None], axis=-1)[..., 0]
    correct = (jnp.argmax(scores, axis=-1) == batch["tags"]).astype(jnp.float32)
    count = jnp.sum(weights)
    terms = {"loss": Mean(jnp.sum(weights * nll), count), "accuracy": Mean(jnp.sum(weights * correct), count)}
    return terms, carry
