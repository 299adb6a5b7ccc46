"""The interface of tokenizers, and the one that needs no library: bytes."""

import dataclasses
import hashlib
from collections.abc import Iterable, Sequence
from typing import Protocol

import numpy as np
from etils import epath

from lmjax.utils import files


class Tokenizer(Protocol):
  """Text to ids below `size` and back; `start` precedes a document and `end` follows it (often the same id)."""

  @property
  def size(self) -> int: ...

  @property
  def start(self) -> int: ...

  @property
  def end(self) -> int: ...

  def encode(self, text: str) -> list[int]:
    """Returns the ids of a string, without start and end."""

  def encode_many(self, texts: Sequence[str]) -> Sequence[Sequence[int] | np.ndarray]:
    """Returns the ids of several strings: the same as `encode` of each, faster."""

  def decode(self, ids: Iterable[int]) -> str:
    """Returns the text of ids; start and end decode to nothing."""

  def save(self, folder: epath.PathLike) -> None:
    """Writes the files that `load` reads."""


@dataclasses.dataclass(frozen=True)
class Bytes:
  """UTF-8 bytes as ids, and one more id for start and end."""

  size: int = 257
  start: int = 256
  end: int = 256

  def encode(self, text: str) -> list[int]:
    return list(text.encode("utf-8"))

  def encode_many(self, texts: Sequence[str]) -> list[np.ndarray]:
    return [np.frombuffer(text.encode("utf-8"), np.uint8) for text in texts]

  def decode(self, ids: Iterable[int]) -> str:
    return bytes(i for i in ids if 0 <= i < 256).decode("utf-8", errors="replace")

  def save(self, folder: epath.PathLike) -> None:
    write_file(folder, "bytes.json", "{}")


def train_bytes(texts: Iterable[str], size: int) -> Bytes:
  """Returns bytes, whatever the texts."""
  return Bytes()


def load_bytes(file: epath.Path) -> Bytes:
  """Returns bytes, whatever the object in bytes.json."""
  files.read_json(file)
  return Bytes()


def ends_of(tokenizer: Tokenizer) -> tuple[int, ...]:
  """Returns the ids at which generation stops: the `ends` of a tokenizer that has several or none, else its `end`."""
  return getattr(tokenizer, "ends", (tokenizer.end,))


def fingerprint(tokenizer: Tokenizer) -> str:
  """Returns a hash of the size, start, end and the ids of a sample text: equal for equal tokenizers."""
  sample = "The quick brown fox, 1234567890 times; naïve façade\n\tπ ≈ 3.14159 <|endoftext|>"
  ids = (tokenizer.size, tokenizer.start, tokenizer.end, *tokenizer.encode(sample))
  return hashlib.sha256(repr(ids).encode()).hexdigest()[:16]


def write_file(folder: epath.PathLike, name: str, text: str | bytes) -> None:
  """Writes a file of a tokenizer's folder, which is created if necessary."""
  files.make_folder(folder)
  files.write(epath.Path(folder) / name, text)
