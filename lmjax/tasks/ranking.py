"""The right one of several choices, by a model of any kind."""

import dataclasses

import jax
import jax.numpy as jnp

from lmjax.data.batch import Batch
from lmjax.models.heads import Classifier
from lmjax.tasks.base import Outputs
from lmjax.tasks.classification import Classification
from lmjax.tasks.downstream import classifier, pool
from lmjax.utils.pytree import Tree

NONE = -1e9  # the score of a choice that is not there; finite, so that the loss of a row of padding is, too


@dataclasses.dataclass(frozen=True)
class Ranking(Classification):
  """-log p(choice | context), p the softmax over one score of each choice; the mean over weighted rows.

    loss = mean over rows + lm_weight * mean over tokens of -log p(next token)

  A row has its choices side by side (see `lmjax.data.objectives.ranking`). Each is scored apart, with its context, by a
  head with one output (Radford et al., 2018, section 3.3; Devlin et al., 2019, section 4.4).
  """

  @property
  def classifier(self) -> tuple[Classifier, str]:
    return classifier(self.model, 1)

  def apart(self, batch: Batch) -> Batch:
    """Returns the choices [B choices, L / choices] of rows [B, L]."""
    rows = len(batch["inputs"]) * len(self.labels)
    return {key: batch[key].reshape(rows, -1, *batch[key].shape[2:]) for key in self.inputs(1, 1)}

  def init(self, rng: jax.Array, batch: Batch) -> Tree:
    return super().init(rng, self.apart(batch))

  def forward(self, params: Tree, batch: Batch, *, rng: jax.Array | None = None, taps: tuple[str, ...] = ()) -> Outputs:
    """Returns the final vectors [B, L, D], and the scores of the choices [B, choices]."""
    choices = self.apart(batch)
    hidden = self.vectors(params, choices, rng)
    x_BxD = self.drop(pool(hidden, self.classifier[1], choices["segments"]), rng)
    size = (len(batch["inputs"]), -1)
    scores = self.head("sequence", params, x_BxD).reshape(size)
    exists = jnp.any(choices["segments"] > 0, axis=1).reshape(size)
    vectors = hidden.tokens.reshape(*size, hidden.tokens.shape[-1])
    return Outputs(vectors, jnp.where(exists, scores, NONE), {})
