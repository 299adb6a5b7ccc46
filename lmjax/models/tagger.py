"""The task network of ELMo's taggers: a bidirectional LSTM, and scores of the tags of every word."""

import jax
import jax.numpy as jnp
from flax import linen as nn

from lmjax.layers.einsum import Einsum
from lmjax.layers.lstm import LSTM


class BiLSTMTagger(nn.Module):
  """Linear scores of the outputs of an LSTM in each direction (Peters et al., 2018, appendix A.3 and A.7).

  classes: the tags. cells: of each direction. dropout: of the outputs, in training.
  """

  classes: int
  cells: int
  dropout: float = 0.0

  @nn.compact
  def __call__(self, x_BxLxD: jax.Array, segments_BxL: jax.Array | None = None) -> jax.Array:
    """Returns float32 scores [B, L, classes].

    Args:
      segments_BxL: 0 is padding, at the end of a row; the state does not pass from one segment to another.
    """
    if segments_BxL is None:
      segments_BxL = jnp.ones(x_BxLxD.shape[:2], jnp.int32)
    size_B = jnp.sum(segments_BxL > 0, axis=1, keepdims=True)
    places_BxL = jnp.arange(x_BxLxD.shape[1])[None]
    reversed_BxL = jnp.where(places_BxL < size_B, size_B - 1 - places_BxL, places_BxL)  # words, not padding
    turned_BxLxD = jnp.take_along_axis(x_BxLxD, reversed_BxL[..., None], axis=1)
    turned_BxL = jnp.take_along_axis(segments_BxL, reversed_BxL, axis=1)
    forwards = self._read("forwards", x_BxLxD, segments_BxL)
    backwards = jnp.take_along_axis(self._read("backwards", turned_BxLxD, turned_BxL), reversed_BxL[..., None], axis=1)
    y_BxLxF = jnp.concatenate([forwards, backwards], axis=-1)
    y_BxLxF = nn.Dropout(self.dropout)(y_BxLxF, deterministic=not self.has_rng("dropout"))
    sizes = {"D": 2 * self.cells, "E": self.classes}
    return Einsum("BLD,DE->BLE", sizes, name="scores")(y_BxLxF).astype(jnp.float32)

  def _read(self, name: str, x_BxLxD: jax.Array, segments_BxL: jax.Array) -> jax.Array:
    """Returns the outputs of an LSTM, which starts anew in every segment."""
    before = jnp.pad(segments_BxL, ((0, 0), (1, 0)))[:, :-1]
    return LSTM(self.cells, self.cells, name=name)(x_BxLxD, None, segments_BxL > 0, segments_BxL != before)[0]
