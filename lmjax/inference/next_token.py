"""What a decoder sees at one position of a row: probabilities of the next token, and attention from there."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from lmjax.utils.errors import UserError
from lmjax.utils.pytree import Tree

STEP = 64  # rows are padded to a multiple of this length, so that few lengths are compiled
MOST_BYTES = 2**31  # of the attention weights of all layers and heads, which one forward pass keeps


@dataclasses.dataclass(frozen=True)
class NextToken:
  """A decoder that is asked for one position at a time; length: the longest row."""

  model: nn.Module
  length: int

  def probabilities(self, params: Tree, batch: Tree, at: int) -> np.ndarray:
    """Returns the probabilities [V] of the token after position `at`, at temperature 1 and without filters.

    Args:
      params: of the model.
      batch: a row, as `row` makes it.
    """
    return np.asarray(self._probabilities(params, batch, at))

  def attention(self, params: Tree, batch: Tree, at: int) -> np.ndarray:
    """Returns the attention weights from position `at` to all positions [N, H, L], of all layers and heads.

    Raises:
      UserError: the model has no attention, or the row is too long to keep all weights.
    """
    shapes = jax.eval_shape(self._taps, params, batch)
    if "attention" not in shapes:
      raise UserError(f"{type(self.model).__name__} models have no attention weights")
    size = shapes["attention"].size * shapes["attention"].dtype.itemsize
    if size > MOST_BYTES:
      tokens = batch["inputs"].shape[1]
      raise UserError(f"the attention of {tokens:,} tokens would need {size / 1e9:.1f} GB; ask about fewer tokens")
    return np.asarray(self._attention(params, batch, at), np.float32)

  def row(self, ids: list[int], image: np.ndarray | None = None) -> Tree:
    """Returns the batch of one row, padded on the right; image: the patches [I, C] of one in its places among them."""
    width = max(min(-(-len(ids) // STEP) * STEP, self.length), len(ids))
    inputs = np.zeros((1, width), np.int32)
    inputs[0, : len(ids)] = ids
    batch = {"inputs": inputs, "segments": (np.arange(width) < len(ids)).astype(np.int32)[None]}
    return batch if image is None else batch | {"embeddings": image[None]}

  def _taps(self, params: Tree, batch: Tree) -> Tree:
    return self.model.apply({"params": params}, batch, taps=("attention",)).taps

  @functools.partial(jax.jit, static_argnums=0)
  def _probabilities(self, params, batch, at):
    tokens_BxLxD = self.model.apply({"params": params}, batch).tokens
    logits_V = self.model.apply({"params": params}, tokens_BxLxD[0, at], method="logits")
    return jax.nn.softmax(logits_V.astype(jnp.float32))

  @functools.partial(jax.jit, static_argnums=0)
  def _attention(self, params, batch, at):
    return self._taps(params, batch)["attention"][:, 0, :, at]
