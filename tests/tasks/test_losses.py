"""The vocabulary loss against plain numpy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lmjax.models.base import Table
from lmjax.tasks.losses import cross_entropy

rng = np.random.default_rng(0)
X = rng.standard_normal((2, 8, 5)).astype(np.float32)
TABLE = rng.standard_normal((12, 5)).astype(np.float32)
TARGETS = rng.integers(0, 9, (2, 8))
WEIGHTS = rng.uniform(0, 2, (2, 8)).astype(np.float32)
VOCABULARY, Z = 9, 0.1


def plain(x, table):
  """Returns the loss in float64, three padded rows left out."""
  scores = x.astype(np.float64) @ table[:VOCABULARY].astype(np.float64).T
  log_z = np.log(np.exp(scores).sum(-1))
  nll = log_z - np.take_along_axis(scores, TARGETS[..., None], -1)[..., 0]
  correct = scores.argmax(-1) == TARGETS
  return (WEIGHTS * (nll + Z * log_z**2)).sum(), (WEIGHTS * nll).sum(), (WEIGHTS * correct).sum()


@pytest.mark.parametrize("chunk", [0, 2, 4, 8])
def test_values(chunk):
  loss, totals = jax.jit(lambda x, t: cross_entropy(x, Table(t), TARGETS, WEIGHTS, VOCABULARY, Z, chunk))(X, TABLE)
  expected = plain(X, TABLE)
  np.testing.assert_allclose([loss, totals["nll"], totals["correct"]], expected, rtol=1e-5)


@pytest.mark.parametrize("chunk, cap", [(0, None), (2, None), (2, 1.5)])
def test_gradients_are_those_of_the_plain_loss(chunk, cap):
  def direct(x, table):
    scores = jnp.einsum("bld,vd->blv", x, table[:VOCABULARY])
    scores = scores if cap is None else cap * jnp.tanh(scores / cap)
    log_z = jax.nn.logsumexp(scores, -1)
    nll = log_z - jnp.take_along_axis(scores, TARGETS[..., None], -1)[..., 0]
    return 3.0 * (WEIGHTS * (nll + Z * log_z**2)).sum()

  def chunked(x, table):
    return 3.0 * cross_entropy(x, Table(table, cap=cap), TARGETS, jnp.asarray(WEIGHTS), VOCABULARY, Z, chunk)[0]

  for a, b in zip(jax.grad(direct, (0, 1))(X, TABLE), jax.grad(chunked, (0, 1))(X, TABLE), strict=True):
    np.testing.assert_allclose(a, b, atol=1e-4)


def test_full_scores_are_never_held():
  """With 16 chunks of a 64k vocabulary, temporaries stay under a quarter of the full scores, gradient included."""
  x, table = jnp.zeros((1, 1024, 8)), jnp.zeros((65536, 8))
  targets, weights = jnp.zeros((1, 1024), jnp.int32), jnp.ones((1, 1024))

  def loss(x, table):
    return cross_entropy(x, Table(table), targets, weights, 65536, 0.0, 64)[0]

  compiled = jax.jit(jax.grad(loss, (0, 1))).lower(x, table).compile()
  assert compiled.memory_analysis().temp_size_in_bytes < 1024 * 65536 * 4 / 4
