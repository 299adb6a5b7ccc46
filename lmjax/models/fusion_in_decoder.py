"""Fusion-in-Decoder (Izacard and Grave, 2021), arXiv:2007.01282: many paragraphs are read apart, and answered."""

import dataclasses
from collections.abc import Mapping

import jax
import jax.numpy as jnp

from lmjax.models import encoder_decoder


@dataclasses.dataclass(frozen=True)
class Config(encoder_decoder.Config):
  """The shape of an encoder-decoder, and how long the paragraphs are that its encoder reads."""

  paragraph: int = 256  # tokens


class FusionInDecoder(encoder_decoder.EncoderDecoder):
  """An encoder-decoder whose encoder reads the paragraphs of a row apart, and whose decoder attends to all of them.

  Paragraph i has the tokens from i * config.paragraph on; segment 0 is padding. Paragraphs are rows for the encoder, so
  that its work and memory grow with their number, and their order does not matter. The parameters are those of
  EncoderDecoder.
  """

  config: Config

  def encode(self, batch: Mapping[str, jax.Array], taps: tuple[str, ...] = ()) -> tuple[jax.Array, dict]:
    (rows, length), size = batch["inputs"].shape, self.config.paragraph
    apart = lambda ids: jnp.pad(ids, ((0, 0), (0, -length % size))).reshape(-1, size)  # noqa: E731
    batch = {"inputs": apart(batch["inputs"]), "segments": apart(self.sources_of(batch))}
    x_RxLxD, tapped = super().encode(batch, taps)
    return x_RxLxD.reshape(rows, -1, x_RxLxD.shape[-1])[:, :length], tapped

  def sources_of(self, batch: Mapping[str, jax.Array]) -> jax.Array:
    return jnp.minimum(batch["segments"], 1)
