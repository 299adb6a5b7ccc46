"""AWQ: the inputs of a kernel that matter most are multiplied before they are rounded, and divided after."""

import dataclasses
import functools

import jax
import jax.numpy as jnp

from lmjax.compression.by_inputs import ByInputs, Rounded
from lmjax.compression.gptq import clipped_grid, hessian, nearest, round_in_turn

GRID = 20  # exponents that are tried, from 0


@dataclasses.dataclass(frozen=True)
class AWQ(ByInputs):
  """Activation-aware rounding (Lin et al., 2023, arXiv:2306.00978).

    W' = diag(s)^-1 Q(diag(s) W),  s_i = m_i^a / sqrt(max m^a * min m^a),  m_i = mean |x_i| of the inputs

  Of 20 exponents a from 0 to 0.95, each kernel gets the one with the least |X W' - X W|^2; a = 0 is plain rounding.
  The range of each group is then clipped as in `GPTQ`. s is kept in the leaf, in place of the norm before it, so that
  kernels of any model can have one. gptq: what is multiplied is rounded by GPTQ, not to the nearest; damping: see GPTQ.
  """

  gptq: bool = False
  damping: float = 0.01

  def __post_init__(self):
    super().__post_init__()
    if not self.damping > 0:
      raise ValueError(f"the damping is above 0, not {self.damping}")

  def observe(self, x_TxI: jax.Array) -> jax.Array:
    return _moments(x_TxI)

  def round(self, weights_IxO: jax.Array, statistic: jax.Array, groups: int) -> Rounded:
    hessian_IxI, sums_I = statistic[:-1], statistic[-1]
    factor_I = _factor(weights_IxO, hessian_IxI, sums_I, groups, self.dtype, self.symmetric)
    scaled_IxO, hessian_IxI = weights_IxO * factor_I[:, None], hessian_IxI / (factor_I[:, None] * factor_I[None])
    if self.gptq:
      return *round_in_turn(scaled_IxO, hessian_IxI, groups, self.dtype, self.symmetric, self.damping), factor_I
    importance = jnp.diagonal(hessian_IxI).reshape(groups, -1)
    blocks = scaled_IxO.reshape(groups, -1, scaled_IxO.shape[1])
    scale, offset = clipped_grid(blocks, importance, self.dtype, self.symmetric)
    values = nearest(blocks, scale, offset, self.dtype, self.symmetric).reshape(weights_IxO.shape)
    return values.astype(self.dtype), scale[:, 0], offset[:, 0], factor_I


@jax.jit
def _moments(x_TxI: jax.Array) -> jax.Array:
  """Returns X^T X, and below it the sum of |x| [I + 1, I]."""
  return jnp.concatenate([hessian(x_TxI), jnp.sum(jnp.abs(x_TxI), axis=0, keepdims=True)])


@functools.partial(jax.jit, static_argnums=(3, 4, 5))
def _factor(
  weights_IxO: jax.Array, hessian_IxI: jax.Array, sums_I: jax.Array, groups: int, dtype: str, symmetric: bool
) -> jax.Array:
  """Returns s [I] with the least error of the outputs."""
  means_I = jnp.maximum(
    sums_I / jnp.maximum(jnp.max(sums_I), 1e-30), 1e-4
  )  # an input that is always 0 has a factor, too

  def factor(exponent):
    s = means_I**exponent
    return s / jnp.sqrt(jnp.max(s) * jnp.min(s))

  def error(exponent):
    s = factor(exponent)[:, None]
    blocks = (weights_IxO * s).reshape(groups, -1, weights_IxO.shape[1])
    scale, offset = clipped_grid(blocks, jnp.ones(blocks.shape[:2]), dtype, symmetric, clips=(1.0,))
    rounded = nearest(blocks, scale, offset, dtype, symmetric) * scale + offset
    lost_IxO = rounded.reshape(weights_IxO.shape) / s - weights_IxO
    return jnp.sum(lost_IxO * jnp.einsum("ij,jo->io", hessian_IxI, lost_IxO))

  exponents = jnp.arange(GRID) / GRID
  return factor(exponents[jnp.argmin(jax.lax.map(error, exponents))])
