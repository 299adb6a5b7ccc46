"""Encoding only: a model's vectors, and the scores of a classification head where it has one."""

import dataclasses

import jax
import jax.numpy as jnp
from flax import linen as nn

from lmjax.data.batch import Batch
from lmjax.models.heads import Classifier
from lmjax.tasks.base import Base, Outputs, Spec
from lmjax.tasks.downstream import with_decoder_inputs
from lmjax.utils.pytree import Tree


@dataclasses.dataclass(frozen=True)
class Encode(Base):
  """A model of any family as an encoder; there is no loss, so it cannot be trained.

  classifier: scores classes, if there is one; its parameters are heads/`labels`. labels: what it scores, the whole
  `sequence`, its `tokens`, or for each of them whether a `span` starts or ends there, or whether it was `replaced`;
  `choice` is the one score of a sequence that is a context with one of its choices.
  pooling: the vector that represents a sequence, `pooled` by an encoder's pooler, the `first` or the `last` of its
  tokens. start: the token from which the decoder of an encoder-decoder starts.
  """

  classifier: Classifier | None = None
  labels: str = "sequence"
  pooling: str = "pooled"
  start: int = 0

  def spec(self, batch: int, length: int) -> Spec:
    keys = ["inputs", "token_types", "positions", "segments"]
    if self.model.kind == "encoder_decoder":
      keys += ["decoder_inputs", "decoder_positions", "decoder_segments"]
    return {key: jax.ShapeDtypeStruct((batch, length), jnp.int32) for key in keys}

  def heads(self) -> dict[str, nn.Module]:
    return {self.labels: self.classifier} if self.classifier else {}

  def forward(self, params: Tree, batch: Batch, *, rng: jax.Array | None = None, taps: tuple[str, ...] = ()) -> Outputs:
    """Returns the final vectors, and as scores those of the classifier, [B, classes] or [B, L, classes].

    Whether tokens were replaced, one score of each says, [B, L].
    """
    batch = with_decoder_inputs(self.model.kind, batch, self.start)
    hidden = self.hidden(params, batch, rng=rng, taps=taps)
    logits = None
    if self.classifier:
      x = hidden.tokens
      if self.labels in ("sequence", "choice"):
        last = jnp.maximum(jnp.sum(batch["segments"] > 0, axis=1) - 1, 0)
        x = {"pooled": hidden.pooled, "first": x[:, 0], "last": x[jnp.arange(len(last)), last]}[self.pooling]
      logits = self.head(self.labels, params, x)
      logits = logits[..., 0] if self.labels == "replaced" else logits
    return Outputs(hidden.tokens, logits, hidden.taps, hidden.pooled)
