"""Rows with a source and a target, from pairs of texts."""

import dataclasses
from collections.abc import Iterable, Sequence
from typing import Any, ClassVar

import numpy as np

from lmjax.data.documents import Documents
from lmjax.data.first_fit import GROUP_ROWS, FirstFit
from lmjax.data.packer import Document, Packer, Row
from lmjax.data.pipeline import Reader
from lmjax.data.sources.base import Source, read_document
from lmjax.data.sources.pair import Pair
from lmjax.data.tokenizers.base import Tokenizer
from lmjax.utils.errors import UserError

PairIds = tuple[np.ndarray, np.ndarray]  # ids of the source [L] and of the target [T], each with its end token


@dataclasses.dataclass(frozen=True)
class TextToText(Reader):
  """Source-target pairs, as many in a row as fit; each target attends to its own source only.

  length, target_length: tokens of the sources and of the targets in a row; a longer source or target is truncated.
  packed: False puts each pair into a row of its own.
  """

  target_length: int = 0  # 0: the same as length
  packed: bool = True
  debug_source: ClassVar[str] = "lmjax.data.sources.python_docs:PythonDocPairs"

  @classmethod
  def debug(cls, settings: dict[str, Any]) -> dict[str, Any]:
    small = super().debug(settings)
    return small | ({"target_length": small["length"]} if "target_length" in settings else {})

  def make_tokenizer(self) -> Tokenizer:
    return self.tokenizer.make(_sides(self.source))

  def shared(self, tokenizer: Tokenizer | None = None) -> dict[str, Any]:
    return {"target_length": self._target_length}

  @property
  def _target_length(self) -> int:
    return self.target_length or self.length

  def documents(self, source: Source, tokenizer: Tokenizer, seed: int | None, streams: int) -> Documents:
    return PairDocuments(source, tokenizer, seed, streams)

  def packers(self, documents: Documents, streams: Iterable[int]) -> dict[int, Packer]:
    lengths = (self.length, self._target_length)
    return {stream: PairRows(lengths, documents.tokenizer.start, self.packed) for stream in streams}


class PairDocuments(Documents):
  """Documents as the ids of source and target, each with an end token."""

  requires = "source-target pairs"

  def encode_text(self, document: Pair | str) -> tuple[list[np.ndarray], int]:
    if not isinstance(document, Pair):
      raise UserError(
        "data: TextToText needs pairs: use a source of lmjax.data.sources.pairs, or "
        "data.kind=lmjax.data.objectives.denoising:Denoising"
      )
    ids = self.tokenizer.encode_many([document.source, document.target])
    if not len(ids[0]) and not len(ids[1]):
      return [], 0
    return [np.array([*side, self.tokenizer.end], np.int32) for side in ids], len(document.target.encode("utf-8"))


class PairRows(FirstFit):
  """Pairs by first fit, over the lengths of source and target; if not packed, each pair has a row of its own."""

  def __init__(self, lengths: tuple[int, int], start: int, packed: bool):
    super().__init__(lengths, max_rows=GROUP_ROWS if packed else 1)
    self.start = start

  def items(self, document: Document) -> Iterable[tuple[Sequence[int], tuple[PairIds, float]]]:
    sides, size = document
    if len(sides):
      source, target = (_truncate(side, length) for side, length in zip(sides, self.lengths, strict=True))
      yield [len(source), len(target)], ((source, target), size)

  def fill(self, items: list[tuple[PairIds, float]]) -> Row:
    return fill(items, self.lengths, self.start)


def fill(pairs: list[tuple[PairIds, float]], lengths: tuple[int, int], start: int) -> Row:
  """Returns the row that holds these pairs, which are given with the number of UTF-8 bytes of their targets.

  inputs, positions, segments [L]; targets, decoder_inputs, decoder_positions, decoder_segments, weights [T]; bytes.

  Args:
    lengths: L and T.
    start: the id with which `decoder_inputs` start.
  """
  names = (("inputs", "positions", "segments"), ("targets", "decoder_positions", "decoder_segments"))
  row: Row = {key: np.zeros(n, np.int32) for keys, n in zip(names, lengths, strict=True) for key in keys}
  row["decoder_inputs"] = np.zeros(lengths[1], np.int32)
  filled, text_bytes = [0, 0], 0.0
  for number, (pair, size) in enumerate(pairs, 1):
    for side, (tokens, positions, segments) in enumerate(names):
      where = slice(filled[side], filled[side] + len(pair[side]))
      row[tokens][where] = pair[side]
      row[positions][where] = np.arange(len(pair[side]))
      row[segments][where] = number
      filled[side] = where.stop
      if side:
        row["decoder_inputs"][where] = [start, *pair[1][:-1]]
    text_bytes += size
  row["weights"] = (row["decoder_segments"] > 0).astype(np.float32)
  return row | {"bytes": np.float64(text_bytes)}


def _truncate(ids: np.ndarray, length: int) -> np.ndarray:
  """Returns at most `length` ids, the last of which is the end token."""
  return ids if len(ids) <= length else np.concatenate([ids[: length - 1], ids[-1:]])


def _sides(source: Source) -> Iterable[str]:
  for document in (read_document(source, i) for i in range(len(source))):
    if isinstance(document, Pair):
      yield document.source
      yield document.target
