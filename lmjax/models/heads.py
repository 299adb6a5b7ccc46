"""Heads: modules that predict from a model's final vectors."""

import jax
import jax.numpy as jnp
from flax import linen as nn

from lmjax.layers.einsum import Einsum, Embed, padded
from lmjax.layers.leaves import dense, param
from lmjax.layers.mlp import ACTIVATIONS
from lmjax.layers.norms import NORMS
from lmjax.models.base import Table


class MaskedLMHead(nn.Module):
  """norm(activation(dense(x))), to be scored against the embedding table, plus a bias for every token."""

  vocabulary: int
  activation: str = "gelu"
  epsilon: float = 1e-12
  embedding: int | None = None  # the width of the table; None is that of the vectors
  bias: bool = True  # of dense layer and norm

  @nn.compact
  def __call__(self, x_BxPxD: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Returns the vectors to score [B, P, D] and the bias of the tokens [V padded]."""
    sizes = {"D": x_BxPxD.shape[-1], "E": self.embedding or x_BxPxD.shape[-1]}
    x_BxPxD = ACTIVATIONS[self.activation](Einsum("BLD,DE->BLE", sizes, self.bias, name="dense")(x_BxPxD))
    return NORMS["layer"](self.epsilon, self.bias, name="norm")(x_BxPxD), _vocabulary_bias(self, self.vocabulary)


class Classifier(nn.Module):
  """A linear map from vectors to scores of classes; with an `activation`, of activation(dense(x))."""

  classes: int
  activation: str = ""
  bias: bool = True  # of the scores

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """Returns float32 scores [B, classes] of vectors [B, D], or [B, L, classes] of [B, L, D]."""
    width = x.shape[-1]
    equation, sizes = "BD,DE->BE" if x.ndim == 2 else "BLD,DE->BLE", {"D": width, "E": width}
    if self.activation:
      x = ACTIVATIONS[self.activation](Einsum(equation, sizes, name="dense")(x))
    scores = Einsum(equation, sizes | {"E": self.classes}, self.bias, name="scores")(x)
    return scores.astype(jnp.float32)


class Mix(nn.Module):
  """What a task learns about the layers of an ELMo: a weight for each, and a scale."""

  layers: int

  @nn.compact
  def __call__(self, x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Returns the weights [N], all equal at first, and the scale []; vectors are not read."""
    weights = param(self, "weights", nn.initializers.zeros, (None,), (self.layers,))
    return dense(weights), dense(param(self, "gamma", nn.initializers.ones, (), ()))


def scalar_mix(layers_NxD: jax.Array, weights_N: jax.Array, gamma: jax.Array) -> jax.Array:
  """Returns gamma * sum_j softmax(weights)_j layer_j, how a task weighs the layers: [..., D] of layers [N, ..., D]."""
  return gamma * jnp.einsum("n,n...->...", jax.nn.softmax(weights_N), layers_NxD)


class Softmax(nn.Module):
  """The table and bias that score the words of a bidirectional language model, shared by both directions."""

  vocabulary: int

  @nn.compact
  def __call__(self, x: jax.Array) -> Table:
    """Returns the table [V padded, D] and the bias [V padded] for vectors [..., D]."""
    table = Embed(self.vocabulary, x.shape[-1], deviation=x.shape[-1] ** -0.5, name="words").table
    return Table(table, _vocabulary_bias(self, self.vocabulary))


def _vocabulary_bias(module: nn.Module, vocabulary: int) -> jax.Array:
  return dense(param(module, "bias", nn.initializers.zeros, ("vocabulary",), (padded(vocabulary),), vocabulary))
