"""Word vectors from spelling: convolutions over characters, highways, a projection (Kim et al., 2016,
arXiv:1508.06615).
"""

import jax
import jax.numpy as jnp
from flax import linen as nn

from lmjax.layers import leaves
from lmjax.layers.einsum import Einsum
from lmjax.layers.mlp import ACTIVATIONS

CHARACTERS = 261  # 256 bytes, start and end of a sentence, start and end of a word, padding


class Filter(nn.Module):
  """A convolution over the characters of each word, and the largest activation of each of its `count` features."""

  width: int  # in characters
  count: int
  activation: str

  @nn.compact
  def __call__(self, x_TxCxE: jax.Array) -> jax.Array:
    """Returns features [T, count] of spelled words."""
    size, dtype = x_TxCxE.shape[-1], x_TxCxE.dtype
    init, names = nn.initializers.normal((self.width * size) ** -0.5), (None, None, "mlp")
    kernel = leaves.dense(leaves.param(self, "kernel", init, names, (self.width, size, self.count)), dtype)
    bias = leaves.param(self, "bias", nn.initializers.zeros, ("mlp",), (self.count,)).astype(dtype)
    y = jax.lax.conv_general_dilated(x_TxCxE, kernel, (1,), "VALID", dimension_numbers=("NWC", "WIO", "NWC"))
    return ACTIVATIONS[self.activation](jnp.max(y, axis=1) + bias[None])


class CharCNN(nn.Module):
  """For each filter the largest activation anywhere in the word, then highway layers, then `width` outputs.

    highway: g relu(x T) + (1 - g) x,  g = sigmoid(x C)     (Srivastava et al., 2015, arXiv:1505.00387)

  filters: (width in characters, number of features). Characters are numbered from 1; 0 is padding.
  """

  width: int
  embedding: int = 16
  filters: tuple[tuple[int, int], ...] = ((1, 32), (2, 32), (3, 64), (4, 128), (5, 256), (6, 512), (7, 1024))
  highways: int = 2
  activation: str = "relu"

  @nn.compact
  def __call__(self, characters_BxLxC: jax.Array, dtype: jnp.dtype = jnp.float32) -> jax.Array:
    """Returns vectors [B, L, D] of spelled words."""
    batch, length, size = characters_BxLxC.shape
    uniform = nn.initializers.uniform(2.0)
    shape = (CHARACTERS, self.embedding)
    table = leaves.param(self, "table", lambda *args: uniform(*args) - 1.0, ("characters", None), shape)
    x = leaves.take(table, jnp.maximum(characters_BxLxC - 1, 0), dtype)
    x = jnp.where((characters_BxLxC > 0)[..., None], x, 0)
    x_TxCxE = x.reshape(batch * length, size, self.embedding)
    features = []
    for i, (width, count) in enumerate(self.filters):
      features.append(Filter(width, count, self.activation, name=f"filter_{i}")(x_TxCxE))
    x_BxLxF = jnp.concatenate(features, axis=-1).reshape(batch, length, -1)
    size = x_BxLxF.shape[-1]
    for i in range(self.highways):
      gate, transform = (
        Einsum("BLF,FE->BLE", {"F": size, "E": size}, deviation=size**-0.5, name=f"{name}_{i}")
        for name in ("gate", "transform")
      )
      g = jax.nn.sigmoid(gate(x_BxLxF))
      x_BxLxF = g * jax.nn.relu(transform(x_BxLxF)) + (1 - g) * x_BxLxF
    return Einsum("BLF,FD->BLD", {"F": size, "D": self.width}, deviation=size**-0.5, name="project")(x_BxLxF)
