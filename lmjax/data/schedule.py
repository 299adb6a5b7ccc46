"""Fixed schedules, in which each of several things occurs in proportion to its weight."""

import numpy as np

PERIOD = 10_000  # weights are rounded to multiples of 1 / PERIOD of their sum
RARE = 1 / 64  # of the documents; a batch of a rarer length would be read for too long


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


def lengths_schedule(counts: np.ndarray, longest: bool) -> list[int]:
  """Returns a schedule of the lengths of rows, by the number of documents that each is the shortest for.

  A row of some length waits for a document of that length. Rare ones are joined with the next longer ones, and if there
  are none, with the next shorter ones in rows of their own length.

  Args:
    counts: at least one is not 0.
    longest: whether there must be rows of the longest length, although no document has been seen that needs them.
  """
  last, least, joined = len(counts) - 1 if longest else np.flatnonzero(counts)[-1], counts.sum() * RARE, 0
  kept = np.zeros_like(counts)
  for i in range(last + 1):
    joined += counts[i]
    if joined >= least or i == last:
      kept[i], joined = joined, 0
  if kept[last] < least:  # it is not the only one, since all together are not rare
    below = np.flatnonzero(kept[:last])[-1]
    kept[last] += kept[below]
    kept[below] = 0
  return schedule(proportions(kept.tolist())).tolist()
