"""SparseGPT: inputs of a kernel lose weights one after the other, and those that follow make up for what was lost."""

import functools

import jax
import jax.numpy as jnp

from lmjax.compression import masks
from lmjax.compression.gptq import ROWS, inverse_factor

DAMPING = 0.01


@functools.partial(jax.jit, static_argnums=(2, 3))
def prune(weights_IxO: jax.Array, hessian_IxI: jax.Array, sparsity: float, structure: str) -> jax.Array:
  """Returns weights with zeros that keep the outputs of given inputs (Frantar and Alistarh, 2023, arXiv:2301.00774).

    score of a weight: w^2 / U_ii^2, with U^T U = H^-1, H = X^T X of the inputs, damped by 1 % of its mean diagonal

  The lowest scores of each block of 64 inputs and all outputs are removed, or of every M inputs of an output.

  Args:
    sparsity: the fraction of each block, rounded; N:M has its own.
    structure: `layer` or N:M, with M a divisor of the inputs.
  """
  inputs, outputs = weights_IxO.shape
  kept, of = masks.kept_of(structure)
  rows = of or (ROWS if inputs % ROWS == 0 else inputs)
  count = of - kept if of else round(sparsity * rows * outputs)
  upper_IxI = inverse_factor(hessian_IxI, DAMPING)

  def block(number, carry):
    weights, zeros = carry
    start = number * rows
    u_RxI = jax.lax.dynamic_slice_in_dim(upper_IxI, start, rows)
    u_RxR = jax.lax.dynamic_slice_in_dim(u_RxI, start, rows, 1)
    part_RxO = jax.lax.dynamic_slice_in_dim(weights, start, rows)
    scores_RxO = jnp.square(part_RxO / jnp.diagonal(u_RxR)[:, None])
    lost = masks.lowest(scores_RxO, count, 0) if of else masks.lowest(scores_RxO.reshape(-1), count, 0)
    lost_RxO = lost.reshape(rows, outputs)

    def row(i, carry):
      part, errors = carry
      error_O = jnp.where(lost_RxO[i], part[i], 0.0) / u_RxR[i, i]
      return part - u_RxR[i][:, None] * error_O[None], errors.at[i].set(error_O)

    _, errors_RxO = jax.lax.fori_loop(0, rows, row, (part_RxO, jnp.zeros_like(part_RxO)))
    weights = weights - jnp.einsum("ri,ro->io", u_RxI, errors_RxO)
    return weights, jax.lax.dynamic_update_slice_in_dim(zeros, lost_RxO, start, 0)

  start = (weights_IxO, jnp.zeros(weights_IxO.shape, bool))
  weights, zeros = jax.lax.fori_loop(0, inputs // rows, block, start)
  return jnp.where(zeros, 0.0, weights)
