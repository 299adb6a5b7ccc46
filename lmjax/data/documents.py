"""Documents: what the streams read, encoded for the packers, in an order that depends on the seed alone.

Stream s of S reads documents s, s + S, s + 2S, ... of an endless sequence, which is shuffled anew in every epoch. Each
part of a mixture is read in that way.
"""

import functools
from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import grain
import numpy as np

from lmjax.data.packer import Document
from lmjax.data.sources.base import BadRecord, Encoded, Source, read_document
from lmjax.data.tokenizers.base import Tokenizer, fingerprint
from lmjax.utils.errors import UserError


@runtime_checkable
class Mixed(Protocol):
  """A source made of several ones, such as `streams.Mixture`."""

  sources: list[Source]

  def draw(self, stream: int, number: int) -> tuple[int, int]:
    """Returns the source of a stream's document `number`, and how many documents of it the stream has read before."""


class Documents:
  """The encoded documents of a source in the order in which streams read them; without a seed, one pass of one stream.

  A subclass whose documents are more than ids overrides `encode_text`, and names what else it needs in `requires`.
  """

  requires = ""

  def __init__(self, source: Source, tokenizer: Tokenizer, seed: int | None, streams: int):
    self.source, self.tokenizer, self.seed, self.streams = source, tokenizer, seed, streams
    self.sources = source.sources if isinstance(source, Mixed) else [source]
    self.report: tuple[int, list[BadRecord]] = (0, [])  # records read and skipped before the first batch

  @functools.cached_property
  def _endless(self) -> list[grain.MapDataset]:
    """Each source, shuffled anew in every epoch."""
    reads = (functools.partial(read_document, source, encode=self.encode) for source in self.sources)
    sources = [grain.MapDataset.range(len(s)).map(read) for s, read in zip(self.sources, reads, strict=True)]
    return [s.seed((self.seed + 104_729 * i) % 2**32).shuffle().repeat() for i, s in enumerate(sources)]

  @functools.cached_property
  def _fingerprint(self) -> str:
    return fingerprint(self.tokenizer)

  def read(self, stream: int, number: int) -> Document | BadRecord:
    """Returns document `number` of a stream; raises IndexError after the last one of a single pass."""
    if self.seed is None:
      if number >= len(self.source):
        raise IndexError(number)
      return read_document(self.source, number, self.encode)
    part, number = self.source.draw(stream, number) if isinstance(self.source, Mixed) else (0, number)
    return self._endless[part][stream + self.streams * number]

  def encode(self, document: str | Encoded | BadRecord) -> Document | BadRecord:
    """Returns the content of a document for the packers and the number of UTF-8 bytes of its text.

    Raises:
      UserError: the ids were prepared with another tokenizer, or ids alone are not enough (see `requires`).
    """
    if isinstance(document, BadRecord):
      return document
    if not isinstance(document, Encoded):
      return self.encode_text(document)
    if self.requires:
      raise UserError(f"data: prepared ids are not enough, the objective needs {self.requires}; use a source of text")
    if document.tokenizer != self._fingerprint:
      raise UserError(
        f"data: the prepared ids come from another tokenizer ({document.tokenizer}) than the run's "
        f"({self._fingerprint}): set config.data.tokenizer.path to the prepared folder, or prepare the text again"
      )
    if document.ids.max(initial=0) >= self.tokenizer.size:
      raise UserError(f"data: a prepared id is {document.ids.max()}, and the tokenizer has {self.tokenizer.size} ids")
    return self._enclose(document.ids), document.bytes

  def encode_text(self, document: str) -> Document:
    """Returns the document of a string for the packers: by default its ids [T] from the start to the end token."""
    ids = self.tokenizer.encode(document) if document.strip() else []
    return self._enclose(ids), len(document.encode("utf-8"))

  def _enclose(self, ids: Sequence[int]) -> np.ndarray:
    """Returns the ids between start and end; empty if there are none."""
    enclosed = np.zeros(len(ids) + 2 if len(ids) else 0, np.int32)
    if len(ids):
      enclosed[0], enclosed[1:-1], enclosed[-1] = self.tokenizer.start, ids, self.tokenizer.end
    return enclosed

  def check_tokenizer(self) -> None:
    """Raises UserError before training starts if a source was prepared with another tokenizer."""
    for first in (source[0] for source in self.sources):
      if isinstance(first, Encoded):
        self.encode(first)
