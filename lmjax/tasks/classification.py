"""Classification and regression of texts and of pairs of texts, by a model of any kind."""

import dataclasses
from collections.abc import Mapping

import jax
import jax.numpy as jnp
from flax import linen as nn

from lmjax.data.batch import Batch
from lmjax.models.heads import Classifier
from lmjax.tasks.base import FrozenModel, Outputs, Spec
from lmjax.tasks.downstream import Downstream, classifier, pool
from lmjax.tasks.log_probs import token_log_probs
from lmjax.utils.metrics import Mean
from lmjax.utils.pytree import Tree


@dataclasses.dataclass(frozen=True)
class Classification(Downstream):
  """-log p(label | text), the mean over weighted rows; without labels, (score - value)^2 of a number.

    loss = mean over rows + lm_weight * mean over tokens of -log p(next token)

  lm_weight: of a decoder's auxiliary language modelling (0.5 in Radford et al., 2018, section 3.2). The head `sequence`
  takes the vector that transformers' classifiers take: the pooled [CLS] of an encoder, the last token of a decoder or
  of an encoder-decoder's decoder (see `downstream.classifier`); an ELMo's is the mean over the words.
  """

  lm_weight: float = 0.0

  def __post_init__(self):
    super().__post_init__()
    if self.lm_weight < 0 or (self.lm_weight and self.model.kind != "decoder"):
      raise ValueError("lm_weight is at least 0, and of decoders alone")

  @property
  def terms(self) -> dict[str, float]:  # type: ignore[override]  # here they depend on a field
    return {"loss": 1.0} | ({"lm": self.lm_weight} if self.lm_weight else {})

  def spec(self, batch: int, length: int) -> Spec:
    spec = self.inputs(batch, length)
    spec |= {"row_weights": jax.ShapeDtypeStruct((batch,), jnp.float32)}
    key, dtype = ("labels", jnp.int32) if self.labels else ("values", jnp.float32)
    spec |= {key: jax.ShapeDtypeStruct((batch,), dtype)}
    if self.lm_weight:
      spec |= {"targets": jax.ShapeDtypeStruct((batch, length), jnp.int32)}
      spec |= {"weights": jax.ShapeDtypeStruct((batch, length), jnp.float32)}
    return spec

  @property
  def classifier(self) -> tuple[Classifier, str]:
    """The head, and the vector it takes."""
    return classifier(self.model, len(self.labels) or 1)

  def heads(self) -> dict[str, nn.Module]:
    return {"sequence": self.classifier[0]} | self.mix()

  def counts(self, batch: Batch) -> dict[str, jax.Array]:
    counts = {"loss": jnp.sum(batch["row_weights"])}
    return counts | ({"lm": jnp.sum(batch["weights"])} if self.lm_weight else {})

  def forward(self, params: Tree, batch: Batch, *, rng: jax.Array | None = None, taps: tuple[str, ...] = ()) -> Outputs:
    """Returns the final vectors, and the scores [B, classes] of the rows, or [B, 1] of a number."""
    hidden = self.vectors(params, batch, rng)
    x_BxD = self.drop(pool(hidden, self.classifier[1], batch["segments"]), rng)
    return Outputs(hidden.tokens, self.head("sequence", params, x_BxD), hidden.taps, hidden.pooled)

  def loss(
    self, params: Tree, frozen: Mapping[str, FrozenModel], carry: Tree, batch: Batch, *, rng: jax.Array | None = None
  ) -> tuple[dict[str, Mean], Tree]:
    outputs = self.forward(params, batch, rng=rng)
    scores, weights = outputs.logits, batch["row_weights"]
    count = jnp.sum(weights)
    if self.labels:
      nll = -jnp.take_along_axis(jax.nn.log_softmax(scores), batch["labels"][:, None], axis=1)[:, 0]
      correct = (jnp.argmax(scores, axis=1) == batch["labels"]).astype(jnp.float32)
      terms = {"loss": Mean(jnp.sum(weights * nll), count), "accuracy": Mean(jnp.sum(weights * correct), count)}
    else:
      terms = {"loss": Mean(jnp.sum(weights * (scores[:, 0] - batch["values"]) ** 2), count)}
    if self.lm_weight:
      table = self.model.unembedding(params["model"])
      log_probs = token_log_probs(outputs.hidden, table, batch["targets"], self.model.config.vocabulary)
      terms["lm"] = Mean(-jnp.sum(batch["weights"] * log_probs), jnp.sum(batch["weights"]))
    return terms, carry
