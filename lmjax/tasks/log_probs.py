"""Log probabilities of tokens, by the scores of a vocabulary."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from lmjax.layers.leaves import dense
from lmjax.models.base import Table
from lmjax.parallel.sharding import constrain, current_layout


def token_log_probs(x_BxLxD: jax.Array, table: Table, targets_BxL: jax.Array, vocabulary: int) -> jax.Array:
  """Returns log p(target) = score(target) - log Z of each vector, float32 [B, L], as `map_rows` does."""

  def row(table, x_LxD, targets_L):
    logits_LxV = table_logits(x_LxD, table, vocabulary)
    score_L = jnp.take_along_axis(logits_LxV, targets_L[:, None], axis=-1)[:, 0]
    return score_L - jax.nn.logsumexp(logits_LxV, axis=-1)

  return map_rows(row, table, x_BxLxD, targets_BxL)


def map_rows(row: Callable[..., Any], table: Table, *arrays: jax.Array) -> Any:
  """Returns row(table, *arrays of a row) of all rows of arrays [B, ...].

  Each device computes one of its rows at a time, again in the backward pass, so that no more than one row's scores are
  in its memory. The table is gathered once, and its gradient is added up across devices once.
  """
  layout, batch = current_layout(), len(arrays[0])
  shards = layout.num_shards("batch", batch) if layout else 1
  values_VxD = dense(table.values)
  values_SxVxD = constrain(jnp.broadcast_to(values_VxD, (shards, *values_VxD.shape)), "batch", "vocabulary", None)
  split = lambda a: a.reshape(shards, -1, *a.shape[1:]).swapaxes(0, 1)  # noqa: E731
  rows = jax.checkpoint(jax.vmap(lambda values, *own: row(table._replace(values=values), *own)))
  mapped = jax.lax.map(lambda own: rows(values_SxVxD, *own), tuple(map(split, arrays)))
  return jax.tree.map(lambda a: a.swapaxes(0, 1).reshape(batch, *a.shape[2:]), mapped)


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
