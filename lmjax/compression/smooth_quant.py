"""SmoothQuant: outliers of what a kernel reads are moved into its weights before both are rounded."""

import dataclasses

import jax
import jax.numpy as jnp

from lmjax.compression.by_inputs import ByInputs, Rounded
from lmjax.compression.quantize import quantize


@dataclasses.dataclass(frozen=True)
class SmoothQuant(ByInputs):
  """Rounding of weights and activations after their ranges were evened out (Xiao et al., 2023, arXiv:2211.10438).

    W' = Q(diag(s) W),  x' = Q(x / s),  s_i = max |x_i|^alpha / max |W_i|^(1 - alpha) of input i

  alpha: how much of the difficulty is moved, from 0 to 1. s is kept in the leaf, in place of the norm before it, so
  that kernels of any model can have one. The maxima of what a kernel reads more than once in a pass are added.
  """

  activations: bool = True
  alpha: float = 0.5

  def __post_init__(self):
    super().__post_init__()
    if not 0 <= self.alpha <= 1 or not self.activations:
      raise ValueError(f"alpha is from 0 to 1, not {self.alpha}, and activations are rounded")

  def observe(self, x_TxI: jax.Array) -> jax.Array:
    return jnp.max(jnp.abs(x_TxI), axis=0)

  def round(self, weights_IxO: jax.Array, statistic: jax.Array, groups: int) -> Rounded:
    largest_I = jnp.max(jnp.abs(weights_IxO), axis=1)
    factor_I = statistic**self.alpha / jnp.maximum(largest_I, 1e-30) ** (1 - self.alpha)
    factor_I = jnp.where((statistic > 0) & (largest_I > 0), factor_I, 1.0)  # an input that is always 0
    leaf = quantize(weights_IxO * factor_I[:, None], (1, weights_IxO.shape[1]), self.dtype)
    return leaf.values, leaf.scale, jnp.zeros_like(leaf.scale), factor_I
