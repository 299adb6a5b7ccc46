"""The two layers that own most weights, Einsum and Embed.

The letters of an equation are those of `utils.shapes.LEGEND`, so a kernel's logical axes are read off its equation:
`Einsum("BLD,DHK->BLHK", {"D": 768, "H": 12, "K": 64})` has a kernel of axes (width, heads, head) and a bias (heads,
head).
"""

import jax
import jax.numpy as jnp
from flax import linen as nn

from lmjax.layers import leaves
from lmjax.utils.shapes import LEGEND

VOCABULARY_MULTIPLE = 128  # tables are padded to it in memory, so that every mesh and every matrix unit divides them


def padded(vocabulary: int) -> int:
  """Returns the number of rows a vocabulary table has in memory."""
  return -(-vocabulary // VOCABULARY_MULTIPLE) * VOCABULARY_MULTIPLE


class Einsum(nn.Module):
  """A linear map by an einsum equation `inputs,kernel->outputs`, plus a bias over the kernel's output axes.

  `scale` multiplies `deviation`, the standard deviation of the kernel's initial values (GPT-2 scales residual
  projections by 1/sqrt(2 depth)). Computes in the dtype of its input.
  """

  equation: str
  sizes: dict[str, int]
  bias: bool = True
  scale: float = 1.0
  deviation: float = 0.02

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    letters, outputs = self.equation.split(",")[1].split("->")
    init = nn.initializers.normal(self.deviation * self.scale)
    y = leaves.einsum(self.equation, x, leaves.param(self, "kernel", init, *self._axes(letters)))
    if self.bias:
      letters = "".join(letter for letter in outputs if letter in letters)
      bias = leaves.param(self, "bias", nn.initializers.zeros, *self._axes(letters))
      y += jnp.expand_dims(bias.astype(x.dtype), tuple(range(y.ndim - bias.ndim)))
    return y

  def _axes(self, letters: str) -> tuple[tuple[str, ...], tuple[int, ...]]:
    return tuple(LEGEND[a] for a in letters), tuple(self.sizes[a] for a in letters)


class Kernel(nn.Module):
  """A kernel alone, for layers that compute their own product."""

  names: tuple[str | None, ...]
  shape: tuple[int, ...]
  deviation: float

  @nn.compact
  def __call__(self, dtype: jnp.dtype) -> jax.Array:
    """Returns the kernel as an array."""
    init = nn.initializers.normal(self.deviation)
    return leaves.dense(leaves.param(self, "kernel", init, self.names, self.shape), dtype)


class Embed(nn.Module):
  """A table of vectors, looked up by id.

  The rows of a vocabulary are padded in memory to a multiple of 128; padding is not counted and its scores are masked.
  """

  rows: int
  width: int
  axis: str = "vocabulary"
  deviation: float = 0.02

  def setup(self):
    rows = padded(self.rows) if self.axis == "vocabulary" else self.rows
    init = nn.initializers.normal(self.deviation)
    self.table = leaves.param(self, "table", init, (self.axis, "width"), (rows, self.width), self.rows)

  def __call__(self, ids: jax.Array, dtype: jnp.dtype = jnp.float32) -> jax.Array:
    """Returns vectors [..., D] of ids [...], in `dtype`."""
    return leaves.take(self.table, ids, dtype)


def vocabulary_logits(x: jax.Array, table_VxD: leaves.Parameter, vocabulary: int) -> jax.Array:
  """Returns float32 logits [..., V] of vectors [..., D] against a table, without those of its padded rows."""
  return leaves.scores(x, table_VxD)[..., :vocabulary]
