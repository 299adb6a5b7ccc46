"""Fusion-in-Decoder (Izacard and Grave, 2021), arXiv:2007.01282: many paragraphs are read apart, and answered."""

from collections.abc import Mapping

import jax
import jax.numpy as jnp

from lmjax.models.encoder_decoder import PRESETS, Config, EncoderDecoder

__all__ = ["PRESETS", "Config", "FusionInDecoder"]


class FusionInDecoder(EncoderDecoder):
  """An encoder-decoder whose encoder reads the paragraphs of a row apart, and whose decoder attends to all of them.

  Segments number the paragraphs of a row from 1; 0 is padding. Positions start in each paragraph, so that their order
  does not matter, and the work of the encoder grows with their number, not with its square. The parameters are those
  of EncoderDecoder.
  """

  def encode(
    self, batch: Mapping[str, jax.Array], taps: tuple[str, ...] = ()
  ) -> tuple[jax.Array, dict[str, jax.Array]]:
    segments_BxM = batch["segments"]
    places_BxM = jnp.broadcast_to(jnp.arange(segments_BxM.shape[1]), segments_BxM.shape)
    first_BxM = segments_BxM != jnp.pad(segments_BxM[:, :-1], ((0, 0), (1, 0)))
    positions_BxM = places_BxM - jax.lax.cummax(jnp.where(first_BxM, places_BxM, 0), axis=1)
    return super().encode({**batch, "positions": positions_BxM}, taps)

  def sources_of(self, batch: Mapping[str, jax.Array]) -> jax.Array | None:
    return jnp.minimum(batch["segments"], 1)
