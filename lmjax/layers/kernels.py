"""What depends on the platform of the mesh's devices (which may be absent while compiling for them): attention kernels,
and what a compiler must be told.
"""

import jax
import jax.numpy as jnp

from lmjax.parallel.sharding import current_layout


def platform() -> str:
  """Returns cpu, gpu or tpu: what the mesh in use is made of, else jax's default."""
  layout = current_layout()
  return layout.mesh.devices.flat[0].platform if layout else jax.default_backend()


def compiler_options() -> dict[str, str] | None:
  """Returns what `jax.jit` is given for the platform: on a CPU, that `materialize` is to be kept until the end."""
  return {"xla_disable_hlo_passes": "cse_barrier_expander"} if platform() == "cpu" else None


def materialize(x: jax.Array) -> jax.Array:
  """Marks an array that is read in several places and must be computed once; elsewhere than on a CPU, the identity.

  XLA's CPU compiler fuses a chain of cheap operations into each of its readers, so the residual stream, a sum over all
  earlier layers, was summed anew wherever it was read: 12 % of a GPT-2 124M step.
  """
  return jax.lax.optimization_barrier(x) if platform() == "cpu" else x


def attend(
  q_BxLxHxK: jax.Array, k_BxMxGxK: jax.Array, v_BxMxGxK: jax.Array, mask_BxLxM: jax.Array | None, causal: bool
) -> jax.Array:
  """Returns softmax(q k / sqrt(K)) v, [B, L, H, K]; H / G query heads share each key/value head.

  A token sees what `mask` allows and, if `causal`, nothing after itself.
  """
  half = q_BxLxHxK.dtype in (jnp.bfloat16, jnp.float16)
  implementation = "cudnn" if platform() == "gpu" and half else "xla"
  mask = None if mask_BxLxM is None else mask_BxLxM[:, None]
  return jax.nn.dot_product_attention(
    q_BxLxHxK, k_BxMxGxK, v_BxMxGxK, mask=mask, is_causal=causal, implementation=implementation
  )


def probabilities(q_BxLxHxK: jax.Array, k_BxMxGxK: jax.Array, mask_BxLxM: jax.Array | None, causal: bool) -> jax.Array:
  """Returns the attention weights [B, H, L, M] in float32, for those who want to look at them."""
  heads, groups = q_BxLxHxK.shape[2], k_BxMxGxK.shape[2]
  k_BxMxHxK = jnp.repeat(k_BxMxGxK, heads // groups, axis=2)
  scores = jnp.einsum("blhk,bmhk->bhlm", q_BxLxHxK, k_BxMxHxK, preferred_element_type=jnp.float32)
  scores *= q_BxLxHxK.shape[-1] ** -0.5
  allowed = jnp.ones(scores.shape[-2:], bool)
  if causal:
    allowed = jnp.tril(allowed)
  allowed = allowed[None] if mask_BxLxM is None else allowed[None] & mask_BxLxM
  return jax.nn.softmax(jnp.where(allowed[:, None], scores, -jnp.inf), axis=-1)
