"""Metrics as (total, count) pairs, which add up over microbatches, hosts and steps without bias."""

import jax
from flax import struct


@struct.dataclass
class Mean:
  """A weighted mean kept as its total and its count."""

  total: jax.Array
  count: jax.Array

  def __add__(self, other: "Mean") -> "Mean":
    return Mean(self.total + other.total, self.count + other.count)

  def value(self) -> float:
    """Returns the mean as a Python float; 0 where nothing was counted."""
    count = float(self.count)
    return float(self.total) / count if count else 0.0


def add(first: dict[str, Mean], second: dict[str, Mean]) -> dict[str, Mean]:
  """Returns the sum of two sets of metrics with the same names."""
  return {key: first[key] + second[key] for key in second} if first else second
