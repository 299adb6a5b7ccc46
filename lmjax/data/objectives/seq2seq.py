"""Rows of sources and targets: from pairs of texts, or from texts of which an objective makes pairs."""

import dataclasses
from collections.abc import Iterable
from typing import Any

import numpy as np

from lmjax.data.objectives.denoising import Objective, SpanCorruption
from lmjax.data.packing import Packer, Position, ReadDocument, Row
from lmjax.data.pipeline import Reader
from lmjax.data.sources.base import BadRecord, Encoded, Source
from lmjax.data.sources.pairs import Pair
from lmjax.data.streams import Documents
from lmjax.data.tokenizers.base import Tokenizer
from lmjax.utils.errors import UserError

GROUP = 64  # rows that are filled from the same pairs

Two = tuple[np.ndarray, np.ndarray]


@dataclasses.dataclass(frozen=True)
class TextToText(Reader):
  """PairDocuments of texts, as many in a row as fit; each target attends to its own source only.

  length, target_length: tokens of source and target in a row. Longer texts are cut. packed: False gives each pair a row
  of its own.
  """

  target_length: int = 0  # 0: as long as the source
  packed: bool = True

  def make_tokenizer(self) -> Tokenizer:
    return self.tokenizer.make(_sides(self.source))

  def shared(self) -> dict[str, Any]:
    return {"target_length": self._targets}

  @property
  def _targets(self) -> int:
    return self.target_length or self.length

  def documents(self, source: Source, tokenizer: Tokenizer, seed: int | None, streams: int) -> Documents:
    return PairDocuments(source, tokenizer, seed, streams)

  def packers(self, documents: Documents, streams: Iterable[int]) -> dict[int, Packer]:
    lengths = (self.length, self._targets)
    return {stream: PairRows(lengths, documents.tokenizer.start, self.packed) for stream in streams}


@dataclasses.dataclass(frozen=True)
class Denoising(Reader):
  """Texts, of which an objective makes source and target: one stretch a row.

  objective: SpanCorruption by default; see denoising.py. length: tokens of the source; the target's follow from it.
  """

  objective: Objective = SpanCorruption()

  def shared(self) -> dict[str, Any]:
    return {"target_length": self.objective.target_tokens(self.length)}

  def integers(self, training: bool) -> int:
    return 3  # document, tokens used up, rows made

  def packers(self, documents: Documents, streams: Iterable[int]) -> dict[int, Packer]:
    documents.refuse_other_tokenizers()
    return {stream: DenoisingRows(self, documents, stream) for stream in streams}


class PairDocuments(Documents):
  """Documents as ids of source and target, each with its end."""

  def encode(self, document: Pair | str | Encoded | BadRecord) -> tuple[list[np.ndarray], int] | BadRecord:
    if isinstance(document, BadRecord):
      return document
    if not isinstance(document, Pair):
      raise UserError(
        "data: text to text needs pairs: see lmjax.data.sources.pairs, or lmjax.data.objectives.seq2seq:Denoising"
      )
    ids = self.tokenizer.encode_many([document.source, document.target])
    if not len(ids[0]) and not len(ids[1]):
      return [], 0
    return [np.array([*side, self.tokenizer.end], np.int32) for side in ids], len(document.target.encode("utf-8"))


class PairRows:
  """Each pair in the first row of a group that has room for both of its sides.

  Position: the first document of the group, and the row's number in it.
  """

  def __init__(self, lengths: tuple[int, int], start: int, packed: bool):
    self.lengths, self.start, self.packed = lengths, start, packed
    self.length = lengths[0]
    self._group: tuple[int, list[list[tuple[Two, float]]], int] = (-1, [], 0)

  def row(self, read: ReadDocument, position: Position) -> tuple[Row, Position]:
    first, number = position
    if self._group[0] != first:
      self._group = (first, *self._place(read, first))
    _, rows, after = self._group
    if not rows:
      return fill([], self.lengths, self.start), position
    return fill(rows[number], self.lengths, self.start), (first, number + 1) if number + 1 < len(rows) else (after, 0)

  def _place(self, read: ReadDocument, document: int) -> tuple[list[list[tuple[Two, float]]], int]:
    rows: list[list[tuple[Two, float]]] = []
    room = np.zeros((0, 2), np.int64)
    while len(rows) < (GROUP if self.packed else 1):
      try:
        sides, size = read(document)
      except IndexError:
        break
      document += 1
      if not sides:
        continue
      pair = tuple(_cut(side, length) for side, length in zip(sides, self.lengths, strict=True))
      wanted = [len(side) for side in pair]
      fits = np.flatnonzero((room >= wanted).all(axis=1)) if self.packed else []
      if not len(fits):
        rows.append([])
        room, fits = np.concatenate([room, [self.lengths]]), [len(rows) - 1]
      rows[fits[0]].append((pair, size))
      room[fits[0]] -= wanted
    return rows, document


class DenoisingRows:
  """Makes the rows of one stream: text one document after the other, cut in stretches.

  Position: the document to read next, how many of its tokens are used up, and rows made so far, which seeds the draws.
  """

  def __init__(self, settings: Denoising, documents: Documents, stream: int):
    self.objective, self.tokenizer = settings.objective, documents.tokenizer
    self.length = settings.length
    self.lengths = (settings.length, settings.objective.target_tokens(settings.length))
    self.input_tokens = settings.objective.input_tokens(settings.length)
    self.seed, self.stream = documents.seed or 0, stream

  def row(self, read: ReadDocument, position: Position) -> tuple[Row, Position]:
    document, used, made = position
    pieces, filled, text_bytes = [], 0, 0.0
    while filled < self.input_tokens:
      try:
        ids, size = read(document)
      except IndexError:
        break
      text = ids[1:-1]
      taken = min(self.input_tokens - filled, len(text) - used)
      if taken > 0:
        pieces.append(text[used : used + taken])
        text_bytes += size * taken / len(text)
      filled, used = filled + max(taken, 0), used + max(taken, 0)
      if used >= len(text):
        document, used = document + 1, 0
    if filled < 2:
      return fill([], self.lengths, self.tokenizer.start), (document, used, made)
    rng = np.random.default_rng([self.seed, self.stream, made])
    source, target = self.objective(np.concatenate(pieces), self.tokenizer, rng)
    end = np.array([self.tokenizer.end], np.int32)
    pair = tuple(np.concatenate([side, end])[:n] for side, n in zip((source, target), self.lengths, strict=True))
    return fill([(pair, text_bytes)], self.lengths, self.tokenizer.start), (document, used, made + 1)


def fill(pairs: list[tuple[Two, float]], lengths: tuple[int, int], start: int) -> Row:
  """Returns a row of pairs: inputs, positions, segments [M]; targets and what the decoder reads [L]; weights, bytes."""
  names = (("inputs", "positions", "segments"), ("targets", "decoder_positions", "decoder_segments"))
  row = {key: np.zeros(n, np.int32) for keys, n in zip(names, lengths, strict=True) for key in keys}
  row["decoder_inputs"] = np.zeros(lengths[1], np.int32)
  filled, text_bytes = [0, 0], 0.0
  for number, (pair, size) in enumerate(pairs, 1):
    for side, (tokens, positions, segments) in enumerate(names):
      here = slice(filled[side], filled[side] + len(pair[side]))
      row[tokens][here] = pair[side]
      row[positions][here] = np.arange(len(pair[side]))
      row[segments][here] = number
      filled[side] = here.stop
      if side:
        row["decoder_inputs"][here] = [start, *pair[1][:-1]]
    text_bytes += size
  row["weights"] = (row["decoder_segments"] > 0).astype(np.float32)
  return row | {"bytes": np.float64(text_bytes)}


def _cut(ids: np.ndarray, length: int) -> np.ndarray:
  """Returns the ids, or as many as fit with their end."""
  return ids if len(ids) <= length else np.concatenate([ids[: length - 1], ids[-1:]])


def _sides(source: Source) -> Iterable[str]:
  for i in range(len(source)):
    found = source[i]
    if isinstance(found, Pair):
      yield found.source
      yield found.target
