"""Everything in the layers that depends on the platform: which kernel runs, barriers, compiler options.

The platform is that of the mesh's devices, which may be absent while a step is compiled for them.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, Literal

import jax
import jax.numpy as jnp

from lmjax.parallel.sharding import current_layout

LANES = 128  # of a TPU's vector unit
Attention = Literal["splash", "cpu", "cudnn", "xla"]  # the kernel that computes it


def platform() -> str:
  """Returns cpu, gpu or tpu: that of the mesh in use, else jax's default."""
  layout = current_layout()
  return layout.mesh.devices.flat[0].platform if layout else jax.default_backend()


def compiler_options() -> dict[str, str] | None:
  """Returns the `compiler_options` of `jax.jit` for the platform.

  On a CPU: keep `barrier` until the last pass, and run operations one after the other, each with all threads, rather
  than several at a time.
  """
  if platform() != "cpu":
    return None
  sequential = "CPU_SCHEDULER_TYPE_MEMORY_OPTIMIZED"
  return {"xla_disable_hlo_passes": "cse_barrier_expander", "xla_cpu_scheduler_type": sequential}


def jit(function: Callable[..., Any], **options: Any) -> Callable[..., Any]:
  """Returns jax.jit of a function with the compiler options of the platform that it is called on.

  For losses. Decoding does without: inside its loops, the CPU compiler of jax 0.12 has no code for `barrier`.
  """

  def call(*arguments: Any) -> Any:
    return jax.jit(function, compiler_options=compiler_options(), **options)(*arguments)

  return call


def attention_implementation(length: int, keys: int, dense_mask: bool, dtype: jnp.dtype, size: int = 8) -> Attention:
  """Returns which kernel computes attention: splash, cpu, cudnn or xla.

  Args:
    length, keys: tokens of the queries and of the keys.
    dense_mask: whether the mask or a bias is an array of length x keys.
    size: of a head.
  """
  name = platform()
  if name == "tpu":
    layout = current_layout()
    shard = length // (layout.num_shards("length") if layout else 1)
    return "xla" if dense_mask or shard % LANES or keys % LANES else "splash"
  if name == "cpu":
    return "cpu" if length > 1 else "xla"  # XLA reads the keys of a single token in the layout of the cache
  even = length == 1 or not (length % 2 or keys % 2)  # cuDNN has no gradient of a masked odd length
  fits = even and size % 8 == 0 and size <= 128 and jnp.dtype(dtype).itemsize == 2
  return "cudnn" if name == "gpu" and fits else "xla"


def transposes_kernels() -> bool:
  """Returns whether products of single tokens read a kernel faster as outputs x inputs."""
  return platform() == "cpu"


def barrier(x: jax.Array) -> jax.Array:
  """Marks an array that several operations read and that must be computed once; the identity except on a CPU.

  XLA's CPU compiler fuses a chain of cheap operations into each of its readers, so the residual stream, a sum over all
  earlier layers, was summed again wherever it was read: 12 % of a GPT-2 124M step.
  """
  return jax.lax.optimization_barrier(x) if platform() == "cpu" else x


def take_rows(table: jax.Array, ids: jax.Array) -> jax.Array:
  """Returns rows [..., D] of a table by their ids [...], those out of range by the nearest.

  On a GPU, of few rows by a product with ones. Its gradient sums many vectors into each row, and a scatter adds those
  one after the other: 157 of the 196 ms of a BERT-Base step, and 519 of T5-small's 685, on an H100.
  """
  if platform() != "gpu" or len(table) > 64:
    return jnp.take(table, ids, axis=0, mode="clip")
  ones = jax.nn.one_hot(jnp.clip(ids, 0, len(table) - 1), len(table), dtype=table.dtype)
  return jnp.matmul(ones, table, precision=jax.lax.Precision.HIGHEST)


def einsum_f32(equation: str, x: jax.Array, y: jax.Array) -> jax.Array:
  """Returns jnp.einsum of two arrays in the dtype of the first; on a CPU it accumulates in float32 and rounds.

  XLA uses a CPU's bfloat16 units only for float32 results, and is otherwise slower than in float32. Elsewhere, sums
  between devices would move twice the bytes.
  """
  accumulate = jnp.promote_types(x.dtype, jnp.float32) if platform() == "cpu" else x.dtype
  return jnp.einsum(equation, x, y, preferred_element_type=accumulate).astype(x.dtype)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def einsum_with_grad(equation: str, x: jax.Array, kernel: jax.Array) -> jax.Array:
  """`einsum_f32` with a kernel gradient whose smaller factor comes first.

  XLA's CPU compiler transposes the first factor of that product, together with what computed it: the derivative of a
  GELU, recomputed in transposed order, cost more than the product itself.
  """
  return einsum_f32(equation, x, kernel)


def _einsum_forward(equation, x, kernel):
  return einsum_f32(equation, x, kernel), (x, kernel)


def _einsum_backward(equation, residuals, dy):
  x, kernel = residuals
  inputs, outputs = equation.split("->")
  inputs, letters = inputs.split(",")
  dx = einsum_f32(f"{outputs},{letters}->{inputs}", dy, kernel)
  first, second = ((inputs, x), (outputs, dy)) if x.size <= dy.size else ((outputs, dy), (inputs, x))
  order = "".join(a for a in first[0] + second[0] if a in letters)
  d_kernel = einsum_f32(f"{first[0]},{second[0]}->{order}", first[1], second[1])
  return dx, jnp.einsum(f"{order}->{letters}", d_kernel)


einsum_with_grad.defvjp(_einsum_forward, _einsum_backward)
