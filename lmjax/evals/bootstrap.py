"""Bootstrap intervals of scores (Efron, 1979)."""

from collections.abc import Callable

import numpy as np

SEED = 0


def interval(
  values: np.ndarray, statistic: Callable[[np.ndarray], float], resamples: int = 1000, seed: int = SEED
) -> tuple[float, float]:
  """Returns the limits of the 95 % interval: percentiles of a statistic over samples of the rows, with replacement.

  Args:
    values: [items] or [items, numbers of an item].
    statistic: of such an array.
  """
  rng = np.random.default_rng(seed)
  size = len(values)
  sample = [statistic(values[rng.integers(0, size, size)]) for _ in range(resamples)]
  low, high = np.percentile(sample, [2.5, 97.5])
  return float(low), float(high)
