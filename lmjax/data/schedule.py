"""Fixed schedules, in which each of several things occurs in proportion to its weight."""

import numpy as np

PERIOD = 10_000  # weights are rounded to multiples of 1 / PERIOD of their sum


def proportions(weights: list[float]) -> np.ndarray:
  """Returns the smallest integers in proportion to the weights, rounded to multiples of 1 / PERIOD of their sum."""
  scaled = np.array(weights) / np.sum(weights) * PERIOD
  counts = np.floor(scaled + 1e-9).astype(np.int64)
  for i in np.argsort(counts - scaled, kind="stable")[: PERIOD - counts.sum()]:  # largest remainders first
    counts[i] += 1
  return counts // np.gcd.reduce(counts)


def schedule(counts: np.ndarray) -> np.ndarray:
  """Returns a sequence of indices in which i occurs `counts[i]` times, evenly spaced (smooth weighted round robin)."""
  credit = np.zeros(len(counts))
  order = np.zeros(int(counts.sum()), np.int64)
  for place in range(len(order)):
    credit += counts
    order[place] = np.argmax(credit)
    credit[order[place]] -= len(order)
  return order
