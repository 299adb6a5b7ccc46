"""The interface of sources: documents by index."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np

from lmjax.utils.errors import UserError, reason

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


def read_document(source: Source, index: int, encode: Callable[[Any], Any] = lambda document: document) -> Any:
  """Returns a document, or what `encode` makes of it; whatever either raises makes it a BadRecord.

  Raises:
    UserError: it is not about this record alone.
  """
  try:
    return encode(source[index])
  except UserError:
    raise
  except Exception as error:
    return BadRecord(f"{type(source).__name__}: record {index}", f"cannot be read: {reason(error)}")


def texts(source: Source) -> Iterable[str]:
  """Yields the documents of a source that are text, in order; half a surrogate pair is none."""
  check = lambda text: text if isinstance(text, str) and text.encode() else None  # noqa: E731
  return (text for text in (read_document(source, i, check) for i in range(len(source))) if isinstance(text, str))


def check_skipped_fraction(read: int, skipped: Sequence[BadRecord]) -> None:
  """Raises UserError if more than 1 % of at least 100 records were skipped."""
  if read >= MIN_RECORDS and len(skipped) > MAX_SKIPPED_FRACTION * read:
    last = skipped[-1]
    raise UserError(
      f"data: {len(skipped)} of {read} records are malformed, more than 1 %; fix or remove them; the last: "
      f"{last.where} {last.why}"
    )
