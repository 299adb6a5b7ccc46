"""Heads: what stands on a model's vectors to make a prediction of them."""

import jax
import jax.numpy as jnp
from flax import linen as nn

from lmjax.layers.einsum import Einsum, Embed, named, padded
from lmjax.layers.mlp import ACTIVATIONS
from lmjax.layers.norms import NORMS


class MaskedLMHead(nn.Module):
  """norm(activation(dense(x))), to be scored against the embedding table, plus a bias for every word."""

  width: int
  vocabulary: int
  activation: str = "gelu"
  epsilon: float = 1e-12

  def setup(self):
    self.dense = Einsum("BLD,DE->BLE", {"D": self.width, "E": self.width})
    self.norm = NORMS["layer"](epsilon=self.epsilon)
    shape = (padded(self.vocabulary),)
    self.bias = self.param("bias", named(nn.initializers.zeros, ("vocabulary",), self.vocabulary), shape, jnp.float32)

  def __call__(self, x_BxPxD: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Returns the vectors to score [B, P, D] and the bias of the words [V padded]."""
    return self.norm(ACTIVATIONS[self.activation](self.dense(x_BxPxD))), self.bias


class Classifier(nn.Module):
  """A linear map from vectors to class scores; with an `activation`, activation(dense(x)) stands before it."""

  width: int
  classes: int
  activation: str = ""
  bias: bool = True  # of the scores

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """Returns float32 scores [B, classes] of vectors [B, D], or [B, L, classes] of [B, L, D]."""
    equation, sizes = "BD,DE->BE" if x.ndim == 2 else "BLD,DE->BLE", {"D": self.width, "E": self.width}
    if self.activation:
      x = ACTIVATIONS[self.activation](Einsum(equation, sizes, name="dense")(x))
    scores = Einsum(equation, sizes | {"E": self.classes}, self.bias, name="scores")(x)
    return scores.astype(jnp.float32)


class Softmax(nn.Module):
  """The table and bias that score words, shared by both directions."""

  vocabulary: int
  width: int

  @nn.compact
  def __call__(self) -> tuple[jax.Array, jax.Array]:
    """Returns the table [V padded, D] and the bias [V padded]."""
    table = Embed(self.vocabulary, self.width, deviation=self.width**-0.5, name="words").table
    shape, init = (padded(self.vocabulary),), named(nn.initializers.zeros, ("vocabulary",), self.vocabulary)
    return table, self.param("bias", init, shape, jnp.float32)
