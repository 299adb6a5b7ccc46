"""The feed-forward layer, plain or gated."""

from functools import partial

import jax
import jax.numpy as jnp
from flax import linen as nn

from lmjax.layers.einsum import Einsum
from lmjax.parallel.sharding import constrain

ACTIVATIONS = {
  "gelu": partial(jax.nn.gelu, approximate=False),
  "gelu_tanh": partial(jax.nn.gelu, approximate=True),
  "relu": jax.nn.relu,
  "silu": jax.nn.silu,
  "quick_gelu": lambda x: x * jax.nn.sigmoid(1.702 * x),
  "tanh": jnp.tanh,
}


class Mlp(nn.Module):
  """down(activation(up(x))), or down(activation(gate(x)) * up(x)) if gated (Shazeer, 2020, arXiv:2002.05202)."""

  width: int
  mlp: int
  activation: str = "gelu_tanh"
  gated: bool = False
  bias: bool = True
  scale: float = 1.0  # of the output projection's initial values
  deviation: float = 0.02  # of the initial values

  @nn.compact
  def __call__(self, x_BxLxD: jax.Array) -> jax.Array:
    sizes = {"D": self.width, "F": self.mlp}
    activation = ACTIVATIONS[self.activation]
    y_BxLxF = Einsum("BLD,DF->BLF", sizes, self.bias, deviation=self.deviation, name="up")(x_BxLxD)
    gate = Einsum("BLD,DF->BLF", sizes, self.bias, deviation=self.deviation, name="gate")
    y_BxLxF = y_BxLxF * activation(gate(x_BxLxD)) if self.gated else activation(y_BxLxF)
    y_BxLxF = constrain(y_BxLxF, "batch", "length", "mlp")
    return Einsum("BLF,FD->BLD", sizes, self.bias, self.scale, self.deviation, name="down")(y_BxLxF)
