"""The legend of batch keys: what a pipeline makes and a task takes, by one set of names."""

from typing import Any

import jax
import numpy as np

from lmjax.utils.errors import UserError, did_you_mean

Batch = dict[str, Any]

LEGEND = {
  "inputs": "ids the model reads, int32 [B, L]",
  "targets": "ids it must predict, int32 [B, L]",
  "weights": "loss weight of each target, float32 [B, L]; 0 on padding",
  "positions": "place of each token in its own document, int32 [B, L]",
  "token_types": "0 for sentence A, 1 for B, int32 [B, L]",
  "masked_positions": "places whose words are to be found, int32 [B, P]; weights and labels are then [B, P] too",
  "labels": "the words at those places, or the class of a row, int32",
  "next_sentence_label": "1 where sentence B is a random one, 0 where it follows A, as BERT has it, int32 [B]",
  "decoder_inputs": "ids the decoder reads, int32 [B, L]; inputs are then the source's, [B, M]",
  "decoder_positions": "place of each of them in its own target, int32 [B, L]",
  "decoder_segments": "number of the packed pair a target token belongs to, as in the source, int32 [B, L]",
  "characters": "spelling of the words read forwards, int32 [B, L, C], 0 where there is no word",
  "reverse_characters": "and of those another part of the row reads backwards, int32 [B, L, C]",
  "reverse_targets": "the words that come next, backwards, int32 [B, L]",
  "segments": "number of the packed document a token belongs to, from 1, int32 [B, L]; 0 is padding",
}


def check(batch: Batch, spec: dict[str, jax.ShapeDtypeStruct]) -> None:
  """Raises UserError where a batch is not what a task's spec asks for."""
  for key, wanted in spec.items():
    if key not in batch:
      raise UserError(
        f"data: the task needs batch key {key!r} ({LEGEND.get(key, 'its own')}){did_you_mean(key, batch)}"
      )
    found = batch[key]
    if found.shape[1:] != wanted.shape[1:] or np.dtype(found.dtype) != np.dtype(wanted.dtype):
      raise UserError(
        f"data: batch key {key!r} is {found.dtype}{list(found.shape)}, the task takes "
        f"{np.dtype(wanted.dtype)}{list(wanted.shape)}"
      )
