"""The keys of a batch, which the data pipeline makes and the task reads: names, shapes, types and meaning."""

import dataclasses
from collections.abc import Iterable
from typing import Any

import jax
import numpy as np

from lmjax.utils.errors import UserError, did_you_mean

Batch = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Key:
  """One batch key.

  axes: a letter for each dimension; alternatives are separated by spaces (see `key_axes`). B: rows. L: tokens of a row,
  or of its source if the row has a source and a target. T: tokens of the target of such a row. P: masked positions of a
  row. C: characters of a word.
  content: what the values are: token, next_token or previous_token (ids), position, segment, token_type, weight,
  character or label. `testing.fake_batch` generates values by it.
  """

  axes: str
  dtype: str
  content: str
  meaning: str


LEGEND = {
  "inputs": Key("BL", "int32", "token", "ids that the model reads; those of the source if there is a target"),
  "targets": Key("BT BL", "int32", "next_token", "ids to predict"),
  "weights": Key("BP BT BL", "float32", "weight", "loss weight of each target or label, 0 on padding"),
  "positions": Key("BL", "int32", "position", "position of each token in its own document, from 0"),
  "segments": Key("BL", "int32", "segment", "number of the packed document a token belongs to, from 1; 0 is padding"),
  "prefix": Key("BL", "int32", "token_type", "1 for tokens that all tokens of their document may attend to"),
  "allowed": Key("BLL", "bool", "token_type", "which earlier tokens of its row each token of a decoder attends to"),
  "token_types": Key("BL", "int32", "token_type", "0 for sentence A, 1 for sentence B"),
  "masked_positions": Key("BP", "int32", "position", "positions whose original ids are to be predicted"),
  "labels": Key("BP B", "int32", "label", "original ids at the masked positions, or the class of each row"),
  "values": Key("B", "float32", "weight", "the number that is to be predicted for each row"),
  "tags": Key("BL", "int32", "label", "the tag of each token, where its weight is not 0"),
  "starts": Key("B", "int32", "label", "the first token of the answer in each row; 0 if there is none"),
  "ends": Key("B", "int32", "label", "the last token of the answer in each row; 0 if there is none"),
  "row_weights": Key("B", "float32", "weight", "loss weight of each row, 0 on padding"),
  "next_sentence_label": Key("B", "int32", "label", "1 if sentence B is random, 0 if it follows A (BERT)"),
  "decoder_inputs": Key("BT", "int32", "token", "ids that the decoder reads"),
  "decoder_positions": Key("BT", "int32", "position", "position of each target token in its own target"),
  "decoder_segments": Key("BT", "int32", "segment", "number of the packed pair of a target token, as in `segments`"),
  "decoder_allowed": Key("BTT", "bool", "token_type", "which earlier tokens of its row a token of a target attends to"),
  "characters": Key("BLC", "int32", "character", "characters of the words read left to right, 0 for padding"),
  "reverse_characters": Key("BLC", "int32", "character", "characters of the words read right to left"),
  "reverse_targets": Key("BL", "int32", "previous_token", "ids to predict for the words read right to left"),
}


def key_axes(keys: Iterable[str]) -> dict[str, str]:
  """Returns the axes of each key in a batch that has these keys; a key that LEGEND does not list is left out.

  A key with alternatives gets the first one whose letters all occur in keys without alternatives: `weights` is [B, P]
  in a batch with `masked_positions`, [B, T] in one with `decoder_inputs`, and [B, L] otherwise.
  """
  listed = {key: LEGEND[key].axes.split() for key in keys if key in LEGEND}
  known = {"B"}.union(*(axes[0] for axes in listed.values() if len(axes) == 1))
  return {key: next((a for a in axes if known.issuperset(a)), axes[-1]) for key, axes in listed.items()}


def check(batch: Batch, spec: dict[str, jax.ShapeDtypeStruct]) -> None:
  """Raises UserError if a batch lacks a key of a task's spec, or has another shape (rows apart) or dtype."""
  for key, wanted in spec.items():
    if key not in batch:
      meaning = f" ({LEGEND[key].meaning})" if key in LEGEND else ""
      raise UserError(f"data: the task needs batch key {key!r}{meaning}{did_you_mean(key, batch)}")
    has, dtype = batch[key], np.dtype(wanted.dtype)
    if has.shape[1:] != wanted.shape[1:] or np.dtype(has.dtype) != dtype:
      own = f"{has.dtype}{list(has.shape)}"
      raise UserError(f"data: batch key {key!r} is {own}, the task takes {dtype}{list(wanted.shape)}")
