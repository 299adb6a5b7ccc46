"""Attention kernels agree: splash, interpreted on a CPU, with XLA's, outputs and gradients; products by platform."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export

from lmjax.layers import backend
from lmjax.layers.backend import einsum_f32
from lmjax.layers.kernels import dispatch
from lmjax.layers.kernels.dispatch import attend, attention_weights
from lmjax.layers.kernels.mask import Mask
from lmjax.layers.kernels.splash import splash

RNG = np.random.default_rng(0)


def inputs(length=256, heads=4, kv_heads=2, size=64):
  def draw(n):
    return jnp.asarray(RNG.normal(size=(2, length, n, size)), jnp.float32)

  return draw(heads), draw(kv_heads), draw(kv_heads)


SEGMENTS = jnp.asarray(np.repeat([[1, 2, 3, 0], [1, 1, 2, 2]], [64] * 4, axis=1))

MASKS = {
  "causal": Mask(causal=True),
  "full": Mask(),
  "packed": Mask(SEGMENTS, causal=True),
  "window": Mask(causal=True, window=100),
  "packed window": Mask(SEGMENTS, causal=True, window=17),
}


@pytest.mark.parametrize("name", MASKS)
@pytest.mark.parametrize("kv_heads", [1, 2, 4])
def test_splash_is_attention(name, kv_heads):
  q, k, v = inputs(kv_heads=kv_heads)
  weights = jnp.asarray(RNG.normal(size=q.shape), jnp.float32)

  def loss(kernel):
    return jax.value_and_grad(lambda *qkv: jnp.sum(weights * kernel(*qkv)), argnums=(0, 1, 2))

  wanted, d_wanted = loss(lambda *qkv: attend(*qkv, MASKS[name]))(q, k, v)
  found, d_found = loss(lambda *qkv: splash(*qkv, MASKS[name], interpret=True))(q, k, v)
  np.testing.assert_allclose(found, wanted, rtol=1e-4)
  for ours, theirs in zip(d_found, d_wanted, strict=True):
    np.testing.assert_allclose(ours, theirs, atol=2e-4)


@pytest.mark.parametrize("kv_heads", [1, 2, 4])
@pytest.mark.parametrize("name", MASKS)
def test_attention_on_a_cpu_is_jax_s(name, kv_heads):
  """Outputs and gradients, of the bias too, and of one that all rows share."""
  mask, (q, k, v) = MASKS[name], inputs(96, kv_heads=kv_heads)
  mask = mask.replace(segments_BxL=None if mask.segments_BxL is None else SEGMENTS[:, :192:2])
  weights, allowed = jnp.asarray(RNG.normal(size=q.shape), jnp.float32), mask.array(96, 96)
  for rows in (1, 2):
    bias = jnp.asarray(RNG.normal(size=(rows, 4, 96, 96)), jnp.float32)

    def jax_s(q, k, v, bias):
      options = dict(bias=bias, mask=None if allowed is None else allowed[:, None], is_causal=mask.causal)
      return jnp.sum(weights * jax.nn.dot_product_attention(q, k, v, **options))

    def ours(q, k, v, bias):
      return jnp.sum(weights * attend(q, k, v, mask.replace(bias_BxHxLxM=bias)))

    with jax.default_matmul_precision("float32"):
      wanted, d_wanted = jax.value_and_grad(jax_s, argnums=(0, 1, 2, 3))(q, k, v, bias)
      found, d_found = jax.value_and_grad(ours, argnums=(0, 1, 2, 3))(q, k, v, bias)
    np.testing.assert_allclose(found, wanted, rtol=1e-4)
    for a, b in zip(d_found, d_wanted, strict=True):
      np.testing.assert_allclose(a, b, atol=2e-5)


def test_attention_in_half_precision_keeps_its_type():
  q, k, v = (x.astype(jnp.bfloat16) for x in inputs(96))
  found, d_found = jax.value_and_grad(lambda *qkv: jnp.sum(attend(*qkv, Mask(causal=True))), argnums=(0, 1, 2))(q, k, v)
  assert found.dtype == jnp.bfloat16 and {x.dtype for x in d_found} == {jnp.dtype("bfloat16")}
  exact = attend(*(x.astype(jnp.float32) for x in (q, k, v)), Mask(causal=True))
  half = attend(q, k, v, Mask(causal=True))
  assert half.dtype == jnp.bfloat16
  np.testing.assert_allclose(half, exact, atol=2**-7 * float(jnp.max(jnp.abs(exact))))


@pytest.mark.parametrize(("platform", "made"), [("cpu", "f32"), ("gpu", "bf16"), ("tpu", "bf16")])
def test_a_bfloat16_product_is_made_as_the_platform_is_fast(platform, made, monkeypatch):
  monkeypatch.setattr(backend, "platform", lambda: platform)
  x, y = (jax.random.normal(jax.random.key(seed), (64, 64), jnp.bfloat16) for seed in (0, 1))
  lowered = jax.jit(lambda x, y: einsum_f32("bd,df->bf", x, y)).lower(x, y)
  assert re.search(r"dot_general.*-> tensor<64x64x(\w+)>", lowered.as_text()).group(1) == made
  exact = np.asarray(x, np.float64) @ np.asarray(y, np.float64)
  found = lowered.compile()(x, y)
  assert found.dtype == jnp.bfloat16
  np.testing.assert_allclose(
    np.asarray(found, np.float64), exact, rtol=2**-8, atol=2**-16
  )  # one rounding, and sums of 64


@pytest.mark.parametrize("name", MASKS)
def test_masks_are_exact(name):
  """Each pair of tokens by the rule, one at a time."""
  mask, (q, k, _) = MASKS[name], inputs()
  seen = np.asarray(attention_weights(q, k, mask)) > 0
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


@pytest.mark.parametrize("name", MASKS)
def test_a_gpu_is_asked_for_cudnn(name, monkeypatch):
  """Lowered for a GPU that is absent: the calls by name, of the output and of its gradient; in float32, none."""
  from jax._src.cudnn import fused_attention_stablehlo as cudnn

  monkeypatch.setattr(cudnn, "check_cudnn_version", lambda *_: 91000)
  monkeypatch.setattr(cudnn, "check_compute_capability", lambda *_: True)
  monkeypatch.setattr(dispatch, "platform", lambda: "gpu")
  gradient = jax.jit(jax.grad(lambda *qkv: jnp.sum(attend(*qkv, MASKS[name])), argnums=(0, 1, 2)))
  for dtype, calls in ((jnp.bfloat16, 2), (jnp.float32, 0)):
    given = [x.astype(dtype) for x in inputs()]
    checks = [
      export.DisabledSafetyCheck.custom_call(f"__cudnn$fmha{kind}")
      for kind in ("Softmax", "SoftmaxBackward", "ScaleBiasSoftmax", "ScaleBiasSoftmaxBackward")
    ]
    lowered = export.export(gradient, platforms=["cuda"], disabled_checks=checks)(*given).mlir_module()
    assert lowered.count("custom_call @__cudnn$fmha") == calls
