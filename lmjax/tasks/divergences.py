"""How far the outputs of two models are apart: probabilities, hidden states, attention maps."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from lmjax.layers.leaves import dense
from lmjax.models.base import Table
from lmjax.tasks.log_probs import table_logits

Distance = Callable[[jax.Array, jax.Array], jax.Array]


def classes(wanted: jax.Array, scores: jax.Array, temperature: float = 1.0) -> jax.Array:
  """Returns T^2 KL(p || q) over the last axis, p = softmax(wanted / T), q = softmax(scores / T) (Hinton et al., 2015).

  T^2 keeps the size of the gradient, which T divides twice.
  """
  log_p = jax.nn.log_softmax(wanted.astype(jnp.float32) / temperature)
  log_q = jax.nn.log_softmax(scores.astype(jnp.float32) / temperature)
  return temperature**2 * jnp.sum(jnp.exp(log_p) * (log_p - log_q), axis=-1)


def words(
  x_BxLxD: jax.Array, table: Table, wanted_BxLxE: jax.Array, wanted_table: Table, vocabulary: int,
  temperature: float = 1.0, chunk: int = 0,
) -> jax.Array:  # fmt: skip
  """Returns the divergence [B, L] of the words that two models predict, from final vectors and what scores them.

  Args:
    chunk: tokens of a row that are scored at a time, and again in the backward pass, a divisor of L; 0 is all of them.
  """
  batch, length = x_BxLxD.shape[:2]
  chunks = length // chunk if chunk and length % chunk == 0 else 1
  tables = [each._replace(values=dense(each.values)) for each in (wanted_table, table)]

  def split(x):
    return x.reshape(batch, chunks, length // chunks, -1).swapaxes(0, 1)

  @jax.checkpoint
  def part(vectors):
    scores = [
      table_logits(x.reshape(-1, x.shape[-1]), own, vocabulary)[:, :vocabulary]
      for x, own in zip(vectors, tables, strict=True)
    ]
    return classes(*scores, temperature).reshape(batch, -1)

  vectors = (split(wanted_BxLxE), split(x_BxLxD))
  if chunks == 1:
    return part(tuple(x[0] for x in vectors))
  return jax.lax.map(part, vectors).swapaxes(0, 1).reshape(batch, length)


def _cosine(x: jax.Array, wanted: jax.Array) -> jax.Array:
  unit = lambda v: v * jax.lax.rsqrt(jnp.sum(jnp.square(v), axis=-1, keepdims=True) + 1e-12)  # noqa: E731
  return 1 - jnp.sum(unit(x) * unit(wanted), axis=-1)


def _mean_square(x: jax.Array, wanted: jax.Array) -> jax.Array:
  return jnp.mean(jnp.square(x - wanted), axis=-1)


def _relative_entropy(x: jax.Array, wanted: jax.Array) -> jax.Array:
  """Returns KL(wanted || x) of probabilities; 0 log 0 is 0."""
  logs = jnp.log(jnp.maximum(wanted, 1e-9)) - jnp.log(jnp.maximum(x, 1e-9))
  return jnp.sum(wanted * logs, axis=-1)


def relations(x_NxBxLxGxK: jax.Array, wanted_NxBxLxGxK: jax.Array, segments_BxL: jax.Array) -> jax.Array:
  """Returns KL(R' || R) of value relations, R = softmax(V V^T / sqrt(K)) of each head among the tokens of a segment.

  Wang et al., 2020, arXiv:2002.10957; [N, B, L], the mean over heads. K may differ between the two.
  """
  same_BxLxL = segments_BxL[:, :, None] == segments_BxL[:, None]

  def relation(v):
    scores = jnp.einsum("nblgk,nbmgk->nbglm", v, v) / v.shape[-1] ** 0.5
    return jax.nn.softmax(jnp.where(same_BxLxL[None, :, None], scores, -1e9))

  return jnp.mean(_relative_entropy(relation(x_NxBxLxGxK), relation(wanted_NxBxLxGxK)), axis=2)


# Distances of the last axis: of vectors, and of probabilities.
HIDDEN: dict[str, Distance] = {"cosine": _cosine, "mse": _mean_square}
ATTENTION: dict[str, Distance] = {"kl": _relative_entropy, "mse": _mean_square}
