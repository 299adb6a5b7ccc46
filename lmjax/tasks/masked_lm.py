"""Masked language modelling with next-sentence prediction: how BERT is pretrained."""

import dataclasses
from collections.abc import Mapping

import jax
import jax.numpy as jnp
from flax import linen as nn

from lmjax.data.batch import Batch
from lmjax.layers.einsum import vocabulary_logits
from lmjax.models.base import Table
from lmjax.models.heads import Classifier, MaskedLMHead
from lmjax.tasks.base import Base, FrozenModel, Outputs, Spec
from lmjax.tasks.losses import cross_entropy
from lmjax.utils.metrics import Mean
from lmjax.utils.pytree import Tree


@dataclasses.dataclass(frozen=True)
class MaskedLM(Base):
  """-log p(token | the text around it) at masked positions, plus -log p(B follows A | both) (Devlin et al., 2019).

    loss = mean over masked positions + mean over pairs

  max_predictions: masked positions of a row at most; only they are scored against the vocabulary. next_sentence:
  whether rows are pairs whose second half may be a random one. activation: of the head; default the model's.
  """

  max_predictions: int = 20
  next_sentence: bool = True
  activation: str = ""

  @property
  def terms(self) -> dict[str, float]:  # type: ignore[override]  # here they depend on a field
    return {"masked_lm": 1.0} | ({"next_sentence": 1.0} if self.next_sentence else {})

  def spec(self, batch: int, length: int) -> Spec:
    keys = ("inputs", "token_types", "positions", "segments")
    spec = {key: jax.ShapeDtypeStruct((batch, length), jnp.int32) for key in keys}
    shape = (batch, self.max_predictions)
    spec |= {key: jax.ShapeDtypeStruct(shape, jnp.int32) for key in ("masked_positions", "labels")}
    spec |= {"weights": jax.ShapeDtypeStruct(shape, jnp.float32)}
    if self.next_sentence:
      spec |= {"next_sentence_label": jax.ShapeDtypeStruct((batch,), jnp.int32)}
    return spec

  def heads(self) -> dict[str, nn.Module]:
    c = self.model.config
    activation = self.activation or c.activation
    bias = getattr(c, "bias", True)  # a ModernBERT has none
    heads: dict[str, nn.Module] = {
      "masked_lm": MaskedLMHead(c.vocabulary, activation, c.epsilon, c.embedding, bias, parent=None)
    }
    return heads | ({"next_sentence": Classifier(2, parent=None)} if self.next_sentence else {})

  def forward(self, params: Tree, batch: Batch, *, rng: jax.Array | None = None, taps: tuple[str, ...] = ()) -> Outputs:
    """Returns the scores of every token [B, L, V], masked or not.

    Among the taps is `next_sentence` [B, 2], the scores of "B follows" and "B is random".
    """
    hidden = self.hidden(params, batch, rng=rng, taps=taps)
    vectors, bias = self.head("masked_lm", params, hidden.tokens)
    vocabulary = self.model.config.vocabulary
    logits = vocabulary_logits(vectors, self.model.unembedding(params["model"]).values, vocabulary)
    extra = {"next_sentence": self.head("next_sentence", params, hidden.pooled)} if self.next_sentence else {}
    return Outputs(hidden.tokens, logits + bias[None, None, :vocabulary], hidden.taps | extra, hidden.pooled)

  def counts(self, batch: Batch) -> dict[str, jax.Array]:
    counts = {"masked_lm": jnp.sum(batch["weights"])}
    return counts | ({"next_sentence": jnp.sum(self._real(batch))} if self.next_sentence else {})

  def loss(
    self, params: Tree, frozen: Mapping[str, FrozenModel], carry: Tree, batch: Batch, *, rng: jax.Array | None = None
  ) -> tuple[dict[str, Mean], Tree]:
    hidden = self.hidden(params, batch, rng=rng)
    loss, totals = cross_entropy(
      *self._masked(params, hidden.tokens, batch), batch["labels"], batch["weights"], self.model.config.vocabulary
    )
    count = jnp.sum(batch["weights"])
    terms = {"masked_lm": Mean(loss, count), "masked_accuracy": Mean(totals["correct"], count)}
    if self.next_sentence:
      real, label = self._real(batch), batch["next_sentence_label"]
      scores = self.head("next_sentence", params, hidden.pooled)
      nll = -jnp.take_along_axis(jax.nn.log_softmax(scores), label[:, None], axis=1)[:, 0]
      right = jnp.argmax(scores, axis=1) == label
      terms["next_sentence"] = Mean(jnp.sum(real * nll), jnp.sum(real))
      terms["next_accuracy"] = Mean(jnp.sum(real * right), jnp.sum(real))
    return terms, carry

  def scored(self, params: Tree, batch: Batch, rng: jax.Array | None = None) -> tuple[jax.Array, Table, jax.Array]:
    tokens = self.hidden(params, batch, rng=rng).tokens
    return *self._masked(params, tokens, batch), batch["labels"]

  def _masked(self, params: Tree, tokens_BxLxD: jax.Array, batch: Batch) -> tuple[jax.Array, Table]:
    """Returns the vectors [B, P, D] of the masked positions, and what scores them."""
    x_BxPxD = jnp.take_along_axis(tokens_BxLxD, batch["masked_positions"][..., None], axis=1)
    vectors, bias = self.head("masked_lm", params, x_BxPxD)
    return vectors, Table(self.model.unembedding(params["model"]).values, bias)

  def _real(self, batch: Batch) -> jax.Array:
    """Returns 1.0 for rows that are not padding."""
    return (batch["segments"][:, 0] > 0).astype(jnp.float32)
