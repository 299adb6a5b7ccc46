"""Losses over a vocabulary that never hold more than a chunk of the scores."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from lmjax.layers.backend import barrier, einsum_f32
from lmjax.layers.leaves import dense
from lmjax.models.base import Table
from lmjax.parallel.sharding import constrain, current_layout
from lmjax.tasks.log_probs import table_logits


def cross_entropy(
  x_BxLxD: jax.Array,
  table: Table,
  targets_BxL: jax.Array,
  weights_BxL: jax.Array,
  vocabulary: int,
  z_loss: float = 0.0,
  chunk: int = 0,
  smoothing: float = 0.0,
) -> tuple[jax.Array, dict[str, jax.Array]]:
  """Scores vectors against a vocabulary table and sums the weighted negative log-likelihood of the targets.

    nll = log Z - score(target),  Z = sum_v exp(score(v));  loss = sum weights * (nll' + z_loss * (log Z)^2)
    nll' = log Z - (1 - smoothing) score(target) - smoothing mean_v score(v)

  Smoothing takes part of the target's weight and spreads it over all words (Szegedy et al., 2016, arXiv:1512.00567).
  The z-loss keeps log Z near 0 (Chowdhery et al., 2022, arXiv:2204.02311, section 5). Under differentiation the
  gradient of a chunk is computed together with its scores, which are then dropped.

  Args:
    x_BxLxD: final vectors, in any float type; products accumulate in float32.
    table: what scores them; its padded rows (from `vocabulary` on) are left out of Z.
    chunk: positions of the length axis scored at a time, a divisor of L; 0 scores all at once.

  Returns:
    the loss, and the float32 totals {"nll", "correct"}, which carry no gradient.
  """
  batch, length = targets_BxL.shape
  chunks = length // chunk if chunk and length % chunk == 0 else 1

  layout = current_layout()
  shards = layout.num_shards("batch", batch) if layout else 1

  # [B, L, ...] -> [chunks, shards, B * L / chunks / shards, ...]: each device keeps its own rows.
  def split(a):
    a = a.reshape(shards, batch // shards, chunks, length // chunks, *a.shape[2:])
    return jnp.moveaxis(a, 2, 0).reshape(chunks, shards, -1, *a.shape[4:])

  weights = split(weights_BxL.astype(jnp.float32))
  arrays = (split(x_BxLxD), dense(table.values), split(targets_BxL), weights, table.bias)
  loss, nll, correct = _xent(*arrays, (vocabulary, z_loss, smoothing, table.cap))
  return loss, {"nll": jax.lax.stop_gradient(nll), "correct": jax.lax.stop_gradient(correct)}


def _chunk(x_TxD, table_VxD, targets_T, weights_T, bias_V, options):
  """Returns the three totals of one chunk, and what its gradient needs."""
  vocabulary, z_loss, smoothing, cap = options
  scores_TxV = table_logits(x_TxD, Table(table_VxD, bias_V, cap), vocabulary)
  top_T = jnp.max(scores_TxV, axis=-1)
  exp_TxV = barrier(jnp.exp(scores_TxV - top_T[:, None]))  # read by the sum and by the gradient
  total_T = jnp.sum(exp_TxV, axis=-1)
  log_z_T = top_T + jnp.log(total_T)
  score_T = jnp.take_along_axis(scores_TxV, targets_T[:, None], axis=-1)[:, 0]
  nll_T = log_z_T - score_T
  loss = jnp.sum(weights_T * (nll_T + z_loss * log_z_T**2))
  if smoothing:
    loss += smoothing * jnp.sum(weights_T * (score_T - jnp.mean(scores_TxV[:, :vocabulary], axis=-1)))
  totals = jnp.stack([loss, jnp.sum(weights_T * nll_T), jnp.sum(weights_T * (score_T >= top_T))])
  slope_TxV = None if cap is None else jnp.nan_to_num(1 - (scores_TxV / cap) ** 2, neginf=0.0)  # of capped scores
  return totals, (exp_TxV, total_T, log_z_T, slope_TxV)


def _of_shards(array: jax.Array, shards: int) -> jax.Array:
  """Returns a table once for the rows of each shard: gathered once, and its gradient added up once."""
  return constrain(jnp.broadcast_to(array, (shards, *array.shape)), "batch", "vocabulary", None)


@partial(jax.custom_vjp, nondiff_argnums=(5,))
def _xent(x, table_VxD, targets, weights, bias, options):
  tables = _of_shards(table_VxD, x.shape[1])
  shard = jax.vmap(lambda table, x, targets, weights: _chunk(x, table, targets, weights, bias, options)[0])
  totals = lambda totals, inputs: (totals + shard(tables, *inputs), None)  # noqa: E731
  return tuple(jnp.sum(jax.lax.scan(totals, jnp.zeros((x.shape[1], 3)), (x, targets, weights))[0], axis=0))


def _xent_forward(x, table_VxD, targets, weights, bias, options):
  vocabulary, z_loss, smoothing, _ = options
  shards = x.shape[1]
  tables = _of_shards(table_VxD, shards)

  def shard(table_VxD, x, targets, weights):
    totals, (exp_TxV, total, log_z, slope_TxV) = _chunk(x, table_VxD, targets, weights, bias, options)
    d_scores = exp_TxV * ((1 + 2 * z_loss * log_z) / total)[:, None]
    d_scores -= (1 - smoothing) * jax.nn.one_hot(targets, exp_TxV.shape[-1], dtype=d_scores.dtype)
    if smoothing:
      d_scores -= jnp.where(jnp.arange(exp_TxV.shape[-1]) < vocabulary, smoothing / vocabulary, 0)[None]
    if slope_TxV is not None:
      d_scores *= slope_TxV
    d_scores = barrier((d_scores * weights[:, None]).astype(x.dtype))
    d_x = einsum_f32("tv,vd->td", d_scores, table_VxD.astype(x.dtype))
    d_table = jnp.einsum("tv,td->vd", d_scores, x, preferred_element_type=jnp.float32)
    return (totals, d_table, None if bias is None else jnp.sum(d_scores, axis=0, dtype=jnp.float32)), d_x

  def body(sums, inputs):
    more, d_x = jax.vmap(shard)(tables, *inputs)
    totals, d_table, d_bias = jax.tree.map(jnp.add, sums, more)
    return (totals, constrain(d_table, "batch", "vocabulary", None), d_bias), d_x

  start = (jnp.zeros((shards, 3)), _of_shards(jnp.zeros(table_VxD.shape, jnp.float32), shards),
           None if bias is None else jnp.zeros((shards, *bias.shape)))  # fmt: skip
  if x.shape[0] == 1:  # no loop, no accumulation
    sums, d_x = body(start, (x[0], targets[0], weights[0]))
    d_x = d_x[None]
  else:
    sums, d_x = jax.lax.scan(body, start, (x, targets, weights))
  totals, d_table, d_bias = jax.tree.map(lambda a: jnp.sum(a, axis=0), sums)
  d_table = constrain(d_table.astype(table_VxD.dtype), "vocabulary", "width")
  if shards > 1:  # devices add up now, rather than after the layers, while whole tables would stay in memory
    d_x, d_table = jax.lax.optimization_barrier((d_x, d_table))
  return tuple(totals), (d_x, d_table, d_bias, targets.shape)


def _xent_backward(options, saved, cotangents):
  scale, shape = cotangents[0], saved[3]  # of the loss; the other totals are metrics
  d_x, d_table, d_bias = jax.tree.map(lambda d: d * scale.astype(d.dtype), saved[:3])
  return d_x, d_table, np.zeros(shape, jax.dtypes.float0), jnp.zeros(shape), d_bias


_xent.defvjp(_xent_forward, _xent_backward)
