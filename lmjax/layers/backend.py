"""What depends on the platform of the mesh's devices, which may be absent while compiling for them."""

import jax
import jax.numpy as jnp

from lmjax.parallel.sharding import current_layout


def platform() -> str:
  """Returns cpu, gpu or tpu: what the mesh in use is made of, else jax's default."""
  layout = current_layout()
  return layout.mesh.devices.flat[0].platform if layout else jax.default_backend()


def compiler_options() -> dict[str, str] | None:
  """Returns what `jax.jit` is given for the platform.

  On a CPU: that `barrier` is to be kept until the end, and that operations come one after the other, each with all
  threads, rather than several at a time in each other's way.
  """
  if platform() != "cpu":
    return None
  one_by_one = "CPU_SCHEDULER_TYPE_MEMORY_OPTIMIZED"
  return {"xla_disable_hlo_passes": "cse_barrier_expander", "xla_cpu_scheduler_type": one_by_one}


def barrier(x: jax.Array) -> jax.Array:
  """Marks an array that is read in several places and must be computed once; elsewhere than on a CPU, the identity.

  XLA's CPU compiler fuses a chain of cheap operations into each of its readers, so the residual stream, a sum over all
  earlier layers, was summed anew wherever it was read: 12 % of a GPT-2 124M step.
  """
  return jax.lax.optimization_barrier(x) if platform() == "cpu" else x


def einsum_f32(equation: str, x: jax.Array, y: jax.Array) -> jax.Array:
  """jnp.einsum of two arrays, in the dtype of the first.

  On a CPU a bfloat16 product is made in float32 and rounded: XLA takes a processor's bfloat16 units only so, and is
  otherwise slower than in float32. Elsewhere the sums between devices would be of twice the bytes.
  """
  accumulate = jnp.promote_types(x.dtype, jnp.float32) if platform() == "cpu" else x.dtype
  return jnp.einsum(equation, x, y, preferred_element_type=accumulate).astype(x.dtype)
