"""Attention kernels agree: splash, interpreted on a CPU, with XLA's, outputs and gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lmjax.layers.kernels import Mask, attend, probabilities, splash

RNG = np.random.default_rng(0)


def inputs(length=256, heads=4, groups=2, size=64):
  def draw(n):
    return jnp.asarray(RNG.normal(size=(2, length, n, size)), jnp.float32)

  return draw(heads), draw(groups), draw(groups)


SEGMENTS = jnp.asarray(np.repeat([[1, 2, 3, 0], [1, 1, 2, 2]], [64] * 4, axis=1))

MASKS = {
  "causal": Mask(causal=True),
  "full": Mask(),
  "packed": Mask(SEGMENTS, causal=True),
  "window": Mask(causal=True, window=100),
  "packed window": Mask(SEGMENTS, causal=True, window=17),
}


@pytest.mark.parametrize("name", MASKS)
@pytest.mark.parametrize("groups", [1, 2, 4])
def test_splash_is_attention(name, groups):
  q, k, v = inputs(groups=groups)
  weights = jnp.asarray(RNG.normal(size=q.shape), jnp.float32)

  def loss(kernel):
    return jax.value_and_grad(lambda *qkv: jnp.sum(weights * kernel(*qkv)), argnums=(0, 1, 2))

  wanted, d_wanted = loss(lambda *qkv: attend(*qkv, MASKS[name]))(q, k, v)
  found, d_found = loss(lambda *qkv: splash(*qkv, MASKS[name], interpret=True))(q, k, v)
  np.testing.assert_allclose(found, wanted, rtol=1e-4)
  for ours, theirs in zip(d_found, d_wanted, strict=True):
    np.testing.assert_allclose(ours, theirs, atol=2e-4)


@pytest.mark.parametrize("name", MASKS)
def test_masks_are_exact(name):
  """Each pair of tokens by the rule, one at a time."""
  mask, (q, k, _) = MASKS[name], inputs()
  seen = np.asarray(probabilities(q, k, mask)) > 0
  segments = np.ones((2, 256), int) if mask.segments_BxL is None else np.asarray(mask.segments_BxL)
  i, j = np.arange(256)[:, None], np.arange(256)[None, :]
  allowed = segments[:, :, None] == segments[:, None, :]
  if mask.causal:
    allowed = allowed & (j <= i)
  if mask.window:
    allowed = allowed & (i - j < mask.window)
  assert (seen == np.broadcast_to(allowed[:, None], seen.shape)).all()


def test_another_row_of_keys_has_segments_of_its_own():
  q, k, v = inputs()
  others = jnp.asarray(np.repeat([[1, 2, 3, 3], [2, 2, 2, 1]], [64] * 4, axis=1))
  mask = Mask(jnp.where(SEGMENTS == 0, 3, SEGMENTS), others)
  np.testing.assert_allclose(splash(q, k, v, mask, interpret=True), attend(q, k, v, mask), atol=2e-5)
