"""Metrics as (total, count) pairs, whose sums over microbatches, hosts and batches give exact means."""

import jax
from flax import struct


@struct.dataclass
class Mean:
  """A weighted mean as the weighted sum and the sum of the weights."""

  total: jax.Array
  count: jax.Array

  def __add__(self, other: "Mean") -> "Mean":
    return Mean(self.total + other.total, self.count + other.count)

  def value(self) -> float:
    """Returns total / count, or 0 where the count is 0."""
    return float(self.total) / float(self.count) if float(self.count) else 0.0


def add(first: dict[str, Mean], second: dict[str, Mean]) -> dict[str, Mean]:
  """Returns the sum of two sets of metrics with the same names."""
  return {key: first[key] + second[key] for key in second} if first else second
