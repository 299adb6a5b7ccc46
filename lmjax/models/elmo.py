"""ELMo: words from their characters, read forwards and backwards by LSTMs (Peters et al., 2018, arXiv:1802.05365)."""

import dataclasses
from collections.abc import Mapping

import jax
import jax.numpy as jnp
from flax import linen as nn

from lmjax.layers.char_cnn import CharCNN
from lmjax.layers.lstm import LSTM, State
from lmjax.models.base import Hidden
from lmjax.models.config import check
from lmjax.parallel.sharding import constrain

DIRECTIONS = ("forwards", "backwards")
States = dict[str, tuple[State, ...]]  # by direction, of each layer


@dataclasses.dataclass(frozen=True)
class Config:
  """The shape of a bidirectional language model and how it is computed."""

  vocabulary: int  # comes from the tokenizer
  length: int  # of a row, in words; comes from data.length. The model itself has no longest one
  width: int = 512  # of words and outputs, in one direction
  cells: int = 4096
  depth: int = 2  # LSTMs in each direction; 0 leaves the words' own vectors
  clip: float = 3.0  # largest absolute value of cells and projections; 0 for any
  skip: bool = True  # every layer but the first adds its input to its output
  embedding: int = 16  # of a character
  filters: tuple[tuple[int, ...], ...] = ((1, 32), (2, 32), (3, 64), (4, 128), (5, 256), (6, 512), (7, 1024))
  highways: int = 2
  activation: str = "relu"
  dropout: float = 0.1
  dtype: str = "float32"  # of the products; parameters and state are float32

  def __post_init__(self):
    check(self, "vocabulary length width cells embedding")
    if min(self.clip, self.highways, self.depth) < 0:
      raise ValueError("clip, highways and depth are at least 0")
    if not self.filters or any(len(pair) != 2 or min(pair) < 1 for pair in self.filters):
      raise ValueError(f"filters are pairs (width in characters, number of features), not {self.filters}")


class ELMo(nn.Module):
  """Parameters: `words` (the character CNN), `forwards_0`, `forwards_1`, ..., `backwards_0`, ..."""

  config: Config
  kind = "bidirectional_lm"
  causal = False

  def setup(self):
    c = self.config
    self.words = CharCNN(c.width, c.embedding, c.filters, c.highways, c.activation)
    self.forwards = [LSTM(c.cells, c.width, c.clip) for _ in range(c.depth)]
    self.backwards = [LSTM(c.cells, c.width, c.clip) for _ in range(c.depth)]
    self.drop = nn.Dropout(c.dropout)

  def __call__(self, batch: Mapping[str, jax.Array], taps: tuple[str, ...] = ()) -> Hidden:
    """Returns the top layer [B, L, 2 D] of `characters`, and as tap `hidden` every layer (see `layers`)."""
    layers, _ = self.layers(batch["characters"])
    return Hidden(layers[-1], taps={"hidden": layers} if "hidden" in taps else {})

  def layers(self, characters_BxLxC: jax.Array, states: States | None = None) -> tuple[jax.Array, States]:
    """Returns every layer's vectors [1 + N, B, L, 2 D], forward half first, and the states after the last words.

    The first layer is the word's own vector, twice. Rows end at their last word; the backward half begins there.
    """
    valid_BxL = characters_BxLxC[..., 0] > 0
    size_B = jnp.sum(valid_BxL, axis=1, keepdims=True)
    places_BxL = jnp.arange(characters_BxLxC.shape[1])[None]
    reversed_BxL = jnp.where(places_BxL < size_B, size_B - 1 - places_BxL, places_BxL)  # words, not padding
    reverse = lambda x: jnp.take_along_axis(x, reversed_BxL[..., None], axis=1)  # noqa: E731
    x_BxLxD = self.spell(characters_BxLxC)
    states = self.empty(len(characters_BxLxC)) if states is None else states
    forwards, first = self.scan_direction("forwards", x_BxLxD, states["forwards"], valid_BxL)
    backwards, second = self.scan_direction("backwards", reverse(x_BxLxD), states["backwards"], valid_BxL)
    layers = [(x_BxLxD, x_BxLxD), *zip(forwards, map(reverse, backwards), strict=True)]
    return jnp.stack([jnp.concatenate(both, axis=-1) for both in layers]), dict(forwards=first, backwards=second)

  def spell(self, characters_BxLxC: jax.Array) -> jax.Array:
    """Returns vectors [B, L, D] of spelled words, each independent of the others."""
    x_BxLxD = self.words(characters_BxLxC, jnp.dtype(self.config.dtype))
    return self.drop(constrain(x_BxLxD, "batch", None, None), deterministic=not self.has_rng("dropout"))

  def scan_direction(
    self, direction: str, x_BxLxD: jax.Array, states: tuple[State, ...], valid_BxL: jax.Array | None = None
  ) -> tuple[list[jax.Array], tuple[State, ...]]:
    """Returns each layer's outputs [B, L, D] in one direction, words as ordered, and the states after the last."""
    outputs, after = [], []
    for i, (layer, state) in enumerate(zip(getattr(self, direction), states, strict=True)):
      y_BxLxD, state = layer(x_BxLxD, state, valid_BxL)
      y_BxLxD = self.drop(y_BxLxD, deterministic=not self.has_rng("dropout"))
      x_BxLxD = y_BxLxD + x_BxLxD if i and self.config.skip else y_BxLxD
      outputs.append(x_BxLxD)
      after.append(state)
    return outputs, tuple(after)

  def empty(self, batch: int) -> States:
    """Returns the states before the first word of `batch` rows."""
    c = self.config
    one = State(jnp.zeros((batch, c.width)), jnp.zeros((batch, c.cells)))
    return dict.fromkeys(DIRECTIONS, (one,) * c.depth)


PRESETS: dict[str, dict] = {
  "elmo-small": dict(
    width=128, cells=512, filters=((1, 16), (2, 16), (3, 32), (4, 64), (5, 64), (6, 64)), highways=1,
  ),
  "elmo-original": dict(
    width=512, cells=4096, filters=((1, 32), (2, 32), (3, 64), (4, 128), (5, 256), (6, 512), (7, 1024)), highways=2
  ),
}  # fmt: skip
