"""How much better answers were than expected, in numpy.

What is collected is small, a number for each token of an answer, and whole on every host; so a mean is the mean of all
hosts. Arrays are [N, T]: answers and their tokens; the mask [N, T] is 1 on the tokens of an answer.
"""

import jax.numpy as jnp
import numpy as np

ESTIMATORS = ("k1", "k2", "k3")
BASELINES = ("group", "leave_one_out", "none")


def kl_estimate(log_ratio: np.ndarray, estimator: str) -> np.ndarray:
  """Returns an estimate of KL(p || q) for each sample of p (Schulman, 2020, "Approximating KL divergence").

    k1 = log p/q   k2 = (log p/q)^2 / 2   k3 = q/p - 1 - log q/p

  k1 and k3 are unbiased, k2 and k3 are never negative. Also of jax arrays.

  Args:
    log_ratio: log p - log q.
  """
  if estimator == "k1":
    return log_ratio
  if estimator == "k2":
    return log_ratio**2 / 2
  exp = np.exp if isinstance(log_ratio, np.ndarray) else jnp.exp
  return exp(-log_ratio) - 1 + log_ratio


def masked_mean(values: np.ndarray, mask: np.ndarray) -> float:
  """Returns the mean over the mask, 0 where it is empty."""
  return float(np.sum(values * mask) / max(np.sum(mask), 1))


def whiten(values: np.ndarray, mask: np.ndarray, shift: bool = True) -> np.ndarray:
  """Returns values with a variance of 1 and, with shift, a mean of 0 over the mask; 0 elsewhere."""
  mean = masked_mean(values, mask)
  variance = masked_mean((values - mean) ** 2, mask)
  white = (values - mean) / np.sqrt(variance + 1e-8)
  return (white if shift else white + mean) * mask


def gae(
  rewards: np.ndarray, values: np.ndarray, mask: np.ndarray, discount: float, decay: float
) -> tuple[np.ndarray, np.ndarray]:
  """Returns generalised advantages and returns [N, T] (Schulman et al., 2016, arXiv:1506.02438, equation 16).

    delta_t = r_t + discount V_{t+1} - V_t,  A_t = delta_t + discount decay A_{t+1},  return_t = A_t + V_t

  V is 0 after the last token of an answer. decay: lambda of the paper.
  """
  values, advantages = values * mask, np.zeros_like(values)
  following, advantage = np.zeros(len(values), values.dtype), np.zeros(len(values), values.dtype)
  for t in reversed(range(values.shape[1])):
    delta = rewards[:, t] + discount * following - values[:, t]
    advantage = (delta + discount * decay * advantage) * mask[:, t]
    advantages[:, t], following = advantage, values[:, t]
  return advantages, (advantages + values) * mask


def group_advantages(scores: np.ndarray, samples: int, baseline: str, scale: bool) -> np.ndarray:
  """Returns the advantage of each answer [N] over the other answers to its prompt, which follow each other.

    group: r - mean(r) (Shao et al., 2024, arXiv:2402.03300)   leave_one_out: r - mean of the others (Ahmadian et al.,
    2024, arXiv:2402.14740)   none: r;   with scale, divided by the standard deviation of the group

  Raises:
    ValueError: a group of one answer has no baseline.
  """
  groups = scores.reshape(-1, samples)
  if baseline != "none" and samples < 2:
    raise ValueError("a group has two answers at least")
  mean = groups.mean(axis=1, keepdims=True)
  others = (groups.sum(axis=1, keepdims=True) - groups) / max(samples - 1, 1)
  advantages = groups - {"group": mean, "leave_one_out": others, "none": np.zeros_like(mean)}[baseline]
  if scale:
    advantages = advantages / (groups.std(axis=1, keepdims=True) + 1e-4)
  return advantages.reshape(-1)


def explained_variance(values: np.ndarray, returns: np.ndarray, mask: np.ndarray) -> float:
  """Returns 1 - Var(return - V) / Var(return): 1 where values predict the returns, 0 where a constant does as well."""

  def variance(x: np.ndarray) -> float:
    return masked_mean((x - masked_mean(x, mask)) ** 2, mask)

  return 1 - variance(returns - values) / max(variance(returns), 1e-8)


def last_tokens(mask: np.ndarray) -> np.ndarray:
  """Returns a mask [N, T] of the last token of each answer."""
  return mask * (np.cumsum(mask, axis=1) == np.sum(mask, axis=1, keepdims=True))
