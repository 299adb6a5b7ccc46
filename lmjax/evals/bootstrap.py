"""Bootstrap intervals of scores (Efron, 1979)."""

from collections.abc import Callable

import numpy as np

SEED = 0


def interval(
  values: np.ndarray, statistic: Callable[[np.ndarray], float], resamples: int = 1000
) -> tuple[float, float]:
  """Returns the limits of the 95 % interval: percentiles of a statistic over samples of the rows, with replacement.

  Args:
    values: [items] or [items, numbers of an item].
    statistic: of such an array.
  """
  rng, size = np.random.default_rng(SEED), len(values)
  sample = [statistic(values[rng.integers(0, size, size)]) for _ in range(resamples)]
  return tuple(map(float, np.percentile(sample, [2.5, 97.5])))  # type: ignore[return-value]


def limits(name: str, values: np.ndarray, statistic: Callable[[np.ndarray], float], resamples: int) -> dict[str, float]:
  """Returns `interval` as {NAME_low, NAME_high}; nothing without samples."""
  ends = interval(values, statistic, resamples) if resamples else ()
  return dict(zip((f"{name}_low", f"{name}_high"), ends, strict=False))
