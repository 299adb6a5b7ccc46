"""The interface of sources: documents by index."""

from collections.abc import Iterable, Sequence
from typing import NamedTuple, Protocol

import numpy as np

from lmjax.utils.errors import UserError

MIN_RECORDS = 100  # records to read before the fraction of skipped ones is checked
MAX_SKIPPED_FRACTION = 0.01  # a run with a larger fraction of skipped records stops


class BadRecord(NamedTuple):
  """A record that cannot be read and is skipped: where it is, and why."""

  where: str
  why: str


class Encoded(NamedTuple):
  """A document as ids without start and end tokens, the UTF-8 bytes of its text, and its tokenizer's fingerprint."""

  ids: np.ndarray
  bytes: int
  tokenizer: str


class Source(Protocol):
  """Documents by index, from 0 to `len(source) - 1`; one that cannot be read is a `BadRecord`, not an error."""

  def __len__(self) -> int: ...

  def __getitem__(self, index: int) -> str | Encoded | BadRecord: ...


def texts(source: Source) -> Iterable[str]:
  """Yields the documents of a source that are text, in order."""
  return (text for text in map(source.__getitem__, range(len(source))) if isinstance(text, str))


def check_skipped_fraction(read: int, skipped: Sequence[BadRecord]) -> None:
  """Raises UserError if more than 1 % of at least 100 records were skipped."""
  if read >= MIN_RECORDS and len(skipped) > MAX_SKIPPED_FRACTION * read:
    last = skipped[-1]
    raise UserError(
      f"data: {len(skipped)} of {read} records are malformed, more than 1 %; fix or remove them; the last: "
      f"{last.where} {last.why}"
    )
