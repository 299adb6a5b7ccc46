"""GPTQ: kernels are rounded one input after the other, and the inputs that follow make up for what was lost."""

import dataclasses
import functools

import jax
import jax.numpy as jnp

from lmjax.compression.by_inputs import ByInputs, Rounded
from lmjax.compression.quantize import DTYPES

CLIPS = tuple(1 - i / 40 for i in range(20))  # of the range of a group that its integers cover
ROWS = 64  # inputs that are rounded before the others are changed


@dataclasses.dataclass(frozen=True)
class GPTQ(ByInputs):
  """Rounding that keeps the outputs for given inputs (Frantar et al., 2023, arXiv:2210.17323).

  H = X^T X + damping * mean(diag H) I of what a kernel reads. Inputs are rounded in the order of their diag H, the
  largest first. The scales of a group come first: its range is clipped by the factor with the least error, weighted by
  diag H. Kernels whose inputs are not seen, and tables, are rounded to the nearest.
  """

  damping: float = 0.01

  def __post_init__(self):
    super().__post_init__()
    if not self.damping > 0:
      raise ValueError(f"the damping is above 0, not {self.damping}")

  def observe(self, x_TxI: jax.Array) -> jax.Array:
    return hessian(x_TxI)

  def round(self, weights_IxO: jax.Array, statistic: jax.Array, groups: int) -> Rounded:
    return *round_in_turn(weights_IxO, statistic, groups, self.dtype, self.symmetric, self.damping), None


@jax.jit
def hessian(x_TxI: jax.Array) -> jax.Array:
  """Returns X^T X of inputs."""
  return jnp.einsum("ti,tj->ij", x_TxI, x_TxI, preferred_element_type=jnp.float32)


def inverse_factor(hessian_IxI: jax.Array, damping: float) -> jax.Array:
  """Returns the upper triangular U with U^T U = (H + damping * mean(diag H) I)^-1.

  Its row i says how the inputs after i make up for a change of input i, when those before it are fixed.
  """
  eye = jnp.eye(len(hessian_IxI))
  added = jnp.maximum(damping * jnp.mean(jnp.diagonal(hessian_IxI)), 1e-12)
  factor = jax.scipy.linalg.cho_factor(hessian_IxI + added * eye)
  return jnp.linalg.cholesky(jax.scipy.linalg.cho_solve(factor, eye)).T


def clipped_grid(
  x_GxKxO: jax.Array, weights_GxK: jax.Array, dtype: str, symmetric: bool, clips: tuple[float, ...] = CLIPS
) -> tuple[jax.Array, jax.Array]:
  """Returns scales and offsets [G, 1, O] of groups: of the clipped ranges, those with the least weighted error."""
  top = DTYPES[dtype]
  low, high = (reduce(x_GxKxO, 1, keepdims=True) for reduce in (jnp.min, jnp.max))
  if symmetric:
    high = jnp.maximum(jnp.abs(low), jnp.abs(high))
    low = -high

  def grid(clip):
    middle, half = (low + high) / 2, clip * (high - low) / 2
    scale = 2 * half / (2 * top + (not symmetric))
    scale = jnp.where(scale > 0, scale, 1.0)
    offset = jnp.zeros_like(scale) if symmetric else middle - half + (top + 1) * scale
    return scale, offset

  def better(best, clip):
    error, scale, offset = best
    new_scale, new_offset = grid(clip)
    lost = x_GxKxO - nearest(x_GxKxO, new_scale, new_offset, dtype, symmetric) * new_scale - new_offset
    new = jnp.sum(weights_GxK[..., None] * jnp.square(lost), 1, keepdims=True)
    pick = lambda one, other: jnp.where(new < error, one, other)  # noqa: E731
    return (pick(new, error), pick(new_scale, scale), pick(new_offset, offset)), None

  start = (jnp.full_like(low, jnp.inf), *grid(1.0))
  (_, scale, offset), _ = jax.lax.scan(better, start, jnp.asarray(clips))
  return scale, offset


def nearest(x: jax.Array, scale: jax.Array, offset: jax.Array, dtype: str, symmetric: bool) -> jax.Array:
  """Returns the nearest integers that the type has, as floats."""
  top = DTYPES[dtype]
  return jnp.clip(jnp.round((x - offset) / scale), -top - (not symmetric), top)


@functools.partial(jax.jit, static_argnums=(2, 3, 4))
def round_in_turn(
  weights_IxO: jax.Array, hessian_IxI: jax.Array, groups: int, dtype: str, symmetric: bool, damping: float
) -> tuple[jax.Array, jax.Array, jax.Array]:
  """Returns integers [I, O], and scales and offsets [groups, O]; without offsets, a zero stays zero."""
  inputs, outputs = weights_IxO.shape
  importance_I = jnp.diagonal(hessian_IxI)
  scale, offset = clipped_grid(
    weights_IxO.reshape(groups, -1, outputs), importance_I.reshape(groups, -1), dtype, symmetric
  )
  order = jnp.argsort(-importance_I)
  scale_IxO, offset_IxO = (jnp.repeat(x[:, 0], inputs // groups, axis=0)[order] for x in (scale, offset))
  upper_IxI = inverse_factor(hessian_IxI[order][:, order], damping)
  zero_IxO = (weights_IxO[order] == 0) & symmetric
  rows = ROWS if inputs % ROWS == 0 else inputs

  def block(number, carry):
    weights, values = carry
    start = number * rows
    cut = lambda x: jax.lax.dynamic_slice_in_dim(x, start, rows)  # noqa: E731
    u_RxI, scale_RxO, offset_RxO, zero_RxO = map(cut, (upper_IxI, scale_IxO, offset_IxO, zero_IxO))
    u_RxR = jax.lax.dynamic_slice_in_dim(u_RxI, start, rows, 1)

    def row(i, carry):
      part, integers, errors = carry
      q = jnp.where(zero_RxO[i], 0, nearest(part[i], scale_RxO[i], offset_RxO[i], dtype, symmetric))
      error = (part[i] - q * scale_RxO[i] - offset_RxO[i]) / u_RxR[i, i]
      return part - u_RxR[i][:, None] * error[None], integers.at[i].set(q), errors.at[i].set(error)

    part = cut(weights)
    _, integers, errors = jax.lax.fori_loop(0, rows, row, (part, jnp.zeros_like(part), jnp.zeros_like(part)))
    weights = weights - jnp.einsum("ri,ro->io", u_RxI, errors)
    return weights, jax.lax.dynamic_update_slice_in_dim(values, integers, start, 0)

  start = (weights_IxO[order], jnp.zeros_like(weights_IxO))
  _, values = jax.lax.fori_loop(0, inputs // rows, block, start)
  return values[jnp.argsort(order)].astype(dtype), scale[:, 0], offset[:, 0]
