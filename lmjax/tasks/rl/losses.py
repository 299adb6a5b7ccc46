"""The clipped loss of policies, and how the losses of tokens are averaged."""

import jax
import jax.numpy as jnp

AVERAGES = ("answer", "token", "constant")


def clipped_loss(log_ratio: jax.Array, advantages: jax.Array, low: float, high: float) -> tuple[jax.Array, jax.Array]:
  """Returns max(-A ratio, -A clip(ratio, 1 - low, 1 + high)) of each token, and where the gradient is cut off (1 or 0).

  Where the ratio is outside on the side to which A pushes it, the loss is constant.
  """
  ratio = jnp.exp(log_ratio)
  loss, near = -advantages * ratio, -advantages * jnp.clip(ratio, 1 - low, 1 + high)
  return jnp.maximum(loss, near), (near > loss).astype(jnp.float32)


def averaged(weights_BxT: jax.Array, average: str) -> tuple[jax.Array, jax.Array]:
  """Returns the weights of the losses of tokens [B, T] and their count, for a mean over a batch.

    answer: the mean over the tokens of each answer, then over answers; token: the mean over all tokens; constant: the
    sum over the tokens of each answer divided by T, then the mean over answers

  `answer` gives the tokens of long answers less weight (Liu et al., 2025, arXiv:2503.20783). An answer without a weight
  is not counted.

  Args:
    weights_BxT: 1 on the tokens that are learned from, else 0.
  """
  if average == "token":
    return weights_BxT, jnp.sum(weights_BxT)
  sizes = jnp.sum(weights_BxT, axis=1, keepdims=True)
  answers = jnp.sum((sizes > 0).astype(jnp.float32))
  return weights_BxT / (jnp.maximum(sizes, 1) if average == "answer" else weights_BxT.shape[1]), answers
