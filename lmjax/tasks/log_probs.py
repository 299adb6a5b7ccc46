"""Log probabilities of tokens, by the scores of a vocabulary."""

import jax
import jax.numpy as jnp

from lmjax.layers.leaves import dense
from lmjax.models.base import Table


def token_log_probs(x_BxLxD: jax.Array, table: Table, targets_BxL: jax.Array, vocabulary: int) -> jax.Array:
  """Returns log p(target) = score(target) - log Z of each vector, float32 [B, L].

  Rows are scored one at a time, again in the backward pass, so that no more than one row's scores are in memory.
  """
  values = dense(table.values)

  @jax.checkpoint
  def row(inputs):
    x_LxD, targets_L = inputs
    logits_LxV = table_logits(x_LxD, table._replace(values=values), vocabulary)
    score_L = jnp.take_along_axis(logits_LxV, targets_L[:, None], axis=-1)[:, 0]
    return score_L - jax.nn.logsumexp(logits_LxV, axis=-1)

  return jax.lax.map(row, (x_BxLxD, targets_BxL))


def table_logits(x_TxD: jax.Array, table: Table, vocabulary: int) -> jax.Array:
  """Returns float32 scores [T, V padded], -inf for padded rows of the table, whose values are an array."""
  table_VxD, bias_V, cap = table
  logits_TxV = jnp.einsum("td,vd->tv", x_TxD, table_VxD.astype(x_TxD.dtype), preferred_element_type=jnp.float32)
  if bias_V is not None:
    logits_TxV += bias_V[None]
  if cap is not None:
    logits_TxV = cap * jnp.tanh(logits_TxV / cap)
  if table_VxD.shape[0] > vocabulary:
    logits_TxV += jnp.where(jnp.arange(table_VxD.shape[0]) < vocabulary, 0.0, -jnp.inf)[None]
  return logits_TxV
