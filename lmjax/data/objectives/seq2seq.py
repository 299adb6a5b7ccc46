"""Rows with a source and a target: given pairs, or pairs that an objective makes from text."""

import dataclasses
from collections.abc import Iterable, Sequence
from typing import Any, ClassVar

import numpy as np

from lmjax.data.objectives.denoising import Objective, SpanCorruption
from lmjax.data.packer import Document, Packer, Position, ReadDocument, Row
from lmjax.data.packing import GROUP_ROWS, FirstFit
from lmjax.data.pipeline import Reader
from lmjax.data.sources.base import Source
from lmjax.data.sources.pairs import Pair
from lmjax.data.streams import Documents
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

  def shared(self) -> dict[str, Any]:
    return {"target_length": self._target_length}

  @property
  def _target_length(self) -> int:
    return self.target_length or self.length

  def documents(self, source: Source, tokenizer: Tokenizer, seed: int | None, streams: int) -> Documents:
    return PairDocuments(source, tokenizer, seed, streams)

  def packers(self, documents: Documents, streams: Iterable[int]) -> dict[int, Packer]:
    lengths = (self.length, self._target_length)
    return {stream: PairRows(lengths, documents.tokenizer.start, self.packed) for stream in streams}


@dataclasses.dataclass(frozen=True)
class Denoising(Reader):
  """Rows of one source and target each, which an objective makes from text.

  objective: `SpanCorruption` by default; see denoising.py. length: tokens of the source; the objective determines those
  of the target.
  """

  objective: Objective = SpanCorruption()

  def shared(self) -> dict[str, Any]:
    return {"target_length": self.objective.target_tokens(self.length)}

  def position_size(self, training: bool) -> int:
    return 3  # document, tokens used, rows made

  def packers(self, documents: Documents, streams: Iterable[int]) -> dict[int, Packer]:
    documents.check_tokenizer()
    return {stream: DenoisingRows(self, documents, stream) for stream in streams}


class PairDocuments(Documents):
  """Documents as the ids of source and target, each with an end token."""

  requires = "source-target pairs"

  def encode_text(self, document: Pair | str) -> tuple[list[np.ndarray], int]:
    if not isinstance(document, Pair):
      raise UserError(
        "data: TextToText needs pairs: use a source of lmjax.data.sources.pairs, or "
        "data.kind=lmjax.data.objectives.seq2seq:Denoising"
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


class DenoisingRows:
  """Makes the rows of one stream: documents are concatenated and cut into windows, one for each row.

  Position: the document to read next, how many of its tokens have been used, and the rows made so far, which seed the
  random choices.
  """

  def __init__(self, settings: Denoising, documents: Documents, stream: int):
    self.objective, self.tokenizer = settings.objective, documents.tokenizer
    self.length = settings.length
    self.lengths = (settings.length, settings.objective.target_tokens(settings.length))
    self.input_tokens = settings.objective.input_tokens(settings.length)
    self.seed, self.stream = documents.seed or 0, stream

  def row(self, read: ReadDocument, position: Position) -> tuple[Row, Position]:
    document, used, made = position
    chunks, filled, text_bytes = [], 0, 0.0
    while filled < self.input_tokens:
      try:
        ids, size = read(document)
      except IndexError:
        break
      text = ids[1:-1]
      taken = min(self.input_tokens - filled, len(text) - used)
      if taken > 0:
        chunks.append(text[used : used + taken])
        text_bytes += size * taken / len(text)
      filled, used = filled + max(taken, 0), used + max(taken, 0)
      if used >= len(text):
        document, used = document + 1, 0
    if filled < 2:
      return fill([], self.lengths, self.tokenizer.start), (document, used, made)
    rng = np.random.default_rng([self.seed, self.stream, made])
    source, target = self.objective(np.concatenate(chunks), self.tokenizer, rng)
    end = np.array([self.tokenizer.end], np.int32)
    source, target = (np.concatenate([s, end])[:n] for s, n in zip((source, target), self.lengths, strict=True))
    return fill([((source, target), text_bytes)], self.lengths, self.tokenizer.start), (document, used, made + 1)


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
  for document in map(source.__getitem__, range(len(source))):
    if isinstance(document, Pair):
      yield document.source
      yield document.target
