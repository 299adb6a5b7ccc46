"""Log-probabilities of answers under a policy, and its entropy."""

import jax
import jax.numpy as jnp

from lmjax.models.base import Table
from lmjax.tasks.log_probs import map_rows, table_logits


def answer_log_probs(
  x_BxTxD: jax.Array, table: Table, targets_BxT: jax.Array, vocabulary: int, temperature: float = 1.0
) -> tuple[jax.Array, jax.Array]:
  """Returns log p(target) and the entropy of p = softmax(scores / temperature) for each vector, float32 [B, T].

  The temperature is that of sampling, so that the policy that learns is the one that wrote the answers; see
  `map_rows`.
  """

  def row(table, x_TxD, targets_T):
    log_p_TxV = jax.nn.log_softmax(table_logits(x_TxD, table, vocabulary) / temperature)
    # The rows of padding have log p = -inf, and p log p = 0.
    entropy_T = -jnp.sum(jnp.exp(log_p_TxV) * jnp.where(jnp.isfinite(log_p_TxV), log_p_TxV, 0), axis=-1)
    return jnp.take_along_axis(log_p_TxV, targets_T[:, None], axis=-1)[:, 0], entropy_T

  return map_rows(row, table, x_BxTxD, targets_BxT)
