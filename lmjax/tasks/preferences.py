"""What tasks that learn from comparisons share: the answers of a row, and the pairs of them.

A row has groups of ranked answers to one prompt, each in a segment of its own: answer k of group g, from the best, has
the segment g * answers + k + 1 (see `lmjax.data.objectives.preferences`).
"""

import dataclasses
import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lmjax.data.batch import Batch
from lmjax.tasks.base import Base, Spec


@dataclasses.dataclass(frozen=True)
class Comparisons(Base):
  """The mean over groups of the mean over the pairs of a group; see the module.

  answers: of a group, at most. groups: of a row, at most. The data sets both.
  """

  answers: int = 2
  groups: int = 4

  def __post_init__(self):
    if self.model.kind != "decoder":
      raise ValueError(f"policies learn from comparisons if they are decoders, not of the kind {self.model.kind!r}")

  def spec(self, batch: int, length: int) -> Spec:
    integers = ("inputs", "targets", "positions", "segments")
    spec = {key: jax.ShapeDtypeStruct((batch, length), jnp.int32) for key in integers}
    return spec | {"weights": jax.ShapeDtypeStruct((batch, length), jnp.float32)}

  def counts(self, batch: Batch) -> dict[str, jax.Array]:
    return {"loss": self.pairs(self.sums(batch, batch["weights"]) > 0)[1]}

  def sums(self, batch: Batch, values_BxL: jax.Array) -> jax.Array:
    """Returns the sum of values over the tokens of each answer, float32 [B, groups, answers]."""
    numbers = jnp.arange(1, 1 + self.groups * self.answers)[None, None]
    own_BxLxN = (segments_of(batch)[..., None] == numbers).astype(jnp.float32)
    sums_BxN = jnp.einsum("bln,bl->bn", own_BxLxN, values_BxL.astype(jnp.float32), precision="highest")
    return sums_BxN.reshape(-1, self.groups, self.answers)

  def differences(self, values_BxGxK: jax.Array) -> jax.Array:
    """Returns the better value minus the worse one of each pair [B, groups, pairs]."""
    better, worse = np.array(list(itertools.combinations(range(self.answers), 2))).T
    return values_BxGxK[..., better] - values_BxGxK[..., worse]

  def pairs(self, exists_BxGxK: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Returns 1 / pairs for each pair of answers of a group that exist, else 0 [B, groups, pairs]; the groups' number.

    An answer exists only where the better ones of its group do.
    """
    worse = [k for _, k in itertools.combinations(range(self.answers), 2)]
    exist = exists_BxGxK[..., np.array(worse)].astype(jnp.float32)
    number = jnp.sum(exist, axis=-1, keepdims=True)
    return exist / jnp.maximum(number, 1), jnp.sum((number > 0).astype(jnp.float32))


def segments_of(batch: Batch) -> Any:
  """Returns the segments of answers [B, L]: of the targets, where a row has sources and targets."""
  return batch["decoder_segments" if "decoder_segments" in batch else "segments"]
