"""Documents by number: what every source gives, and how files of them are found, cut and read piece by piece.

Files may be plain or gzipped, local or remote (`gs://...`). A plain local file is mapped, not read: its size costs
no memory. A gzipped, cleaned or remote one is read whole, and the last few are kept.
"""

import fnmatch
import functools
import glob
import gzip
import mmap
import re
import zlib
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple, Protocol

import numpy as np
from etils import epath

from lmjax.utils.errors import UserError

Cut = Callable[[bytes], np.ndarray]  # where the documents of a file start
Clean = Callable[[bytes], bytes]  # what is read of a file

LARGEST = 16 * 2**20  # bytes of a document; more is a mistake in cutting
PATIENCE = 100  # records read before the share of bad ones is judged
TOLERANCE = 0.01  # share of bad records that stops a run


class BadRecord(NamedTuple):
  """A record that could not be read: where it is, and why."""

  where: str
  why: str


class Encoded(NamedTuple):
  """A document as ids, without start and end; the bytes of its text; the fingerprint of the tokenizer that made it."""

  ids: np.ndarray
  bytes: int
  tokenizer: str


class Source(Protocol):
  """Documents by number."""

  def __len__(self) -> int: ...

  def __getitem__(self, index: int) -> str | Encoded | BadRecord: ...


def texts(source: Source) -> Iterable[str]:
  """Yields the texts of a source, in order."""
  return (text for text in map(source.__getitem__, range(len(source))) if isinstance(text, str))


def check_skipped_fraction(read: int, bad: Sequence[BadRecord]) -> None:
  """Raises UserError if more than 1 % of at least 100 records were bad."""
  if read >= PATIENCE and len(bad) > TOLERANCE * read:
    raise UserError(
      f"data: {len(bad)} of {read} records are bad, more than 1 %; the last: {bad[-1].where} {bad[-1].why}"
    )


def split_range(count: int, split: str) -> range:
  """Returns the indices in a part of `count` items, written as a slice of percents: `:90%`, `90%:`, `` for all.

  Raises:
    UserError: the split is written otherwise, or is empty.
  """
  match = re.fullmatch(r"(?:(\d+(?:\.\d+)?)%)?:(?:(\d+(?:\.\d+)?)%)?", split or ":")
  if not match:
    raise UserError(f"data: split {split!r} is not of the form ':90%', '90%:' or '80%:90%'")
  start, end = (float(p) if p else whole for p, whole in zip(match.groups(), (0.0, 100.0), strict=True))
  numbers = range(int(count * start / 100), int(count * end / 100))
  if not numbers:
    raise UserError(f"data: split {split!r} of {count} documents is empty: give more text or a larger split")
  return numbers


def parse_split(split: str) -> tuple[str, str]:
  """Returns the name and the range of a split as TFDS writes it: `train[:90%]` is ("train", ":90%").

  Raises:
    UserError: the split is written otherwise.
  """
  match = re.fullmatch(r"([^\[\]]+)(?:\[([^\[\]]*)\])?", split)
  if not match:
    raise UserError(f"data: split {split!r} is not of the form 'train' or 'train[:90%]'")
  return match[1], match[2] or ""


def expand_paths(files: str | Sequence[str]) -> list[epath.Path]:
  """Returns the files of paths and globs, sorted.

  Raises:
    UserError: a path or glob matches nothing.
  """
  patterns = [files] if isinstance(files, str) else list(files)
  found: list[epath.Path] = []
  for pattern in patterns:
    path = epath.Path(pattern).expanduser()
    if "://" not in pattern:
      matches = [epath.Path(p) for p in glob.glob(str(path), recursive=True)]
    elif glob.has_magic(path.name):  # of a remote pattern, the last part may be one
      matches = [p for p in path.parent.iterdir() if fnmatch.fnmatch(p.name, path.name)]
    else:
      matches = [path]
    matches = sorted(p for p in matches if p.exists() and not p.is_dir())
    if not matches:
      raise UserError(
        f"data: no file matches {pattern!r} (looked from {epath.Path().resolve()}); "
        "name your text with --config configs/text.py:files=my/*.txt"
      )
    found += matches
  return found


class Index:
  """Where each document of some files starts and ends."""

  def __init__(self, files: list[epath.Path], cut: Cut, split: str, clean: Clean | None = None, shuffle: bool = False):
    self.files, self.clean = files, clean
    starts, owners, self.ends = [], [], []
    for number, path in enumerate(files):
      data = read(path, clean)
      cuts = cut(data) if len(data) else np.zeros(0, np.int64)
      starts.append(cuts)
      owners.append(np.full(len(cuts), number, np.int32))
      self.ends.append(len(data))
    self.starts, self.owners = np.concatenate(starts), np.concatenate(owners)
    order = np.arange(len(self.starts))
    if shuffle:
      np.random.default_rng(0).shuffle(order)
    self.numbers = order[split_range(len(order), split)]

  def __len__(self) -> int:
    return len(self.numbers)

  def _place(self, index: int) -> tuple[int, int, int]:
    """Returns the file, start and end of a document."""
    i = self.numbers[index]
    owner = int(self.owners[i])
    last = i + 1 == len(self.starts) or self.owners[i + 1] != owner
    return owner, int(self.starts[i]), self.ends[owner] if last else int(self.starts[i + 1])

  def document(self, index: int) -> str | BadRecord:
    owner, start, end = self._place(index)
    if end - start > LARGEST:
      return BadRecord(self.where(index), f"has {end - start:,} bytes, more than the {LARGEST:,} of a document: cut it")
    try:
      return read(self.files[owner], self.clean)[start:end].decode("utf-8")
    except UnicodeDecodeError as error:
      return BadRecord(self.where(index, error.start), f"is not UTF-8: {error.reason}")

  def where(self, index: int, offset: int = 0) -> str:
    """Returns `file:line` of a document, or of a byte in it."""
    owner, start, _ = self._place(index)
    data, end = read(self.files[owner], self.clean), start + offset
    line = sum(data[i : min(i + 2**20, end)].count(b"\n") for i in range(0, end, 2**20)) + 1
    return f"{self.files[owner]}:{line}"


@functools.lru_cache(maxsize=16)
def read(path: epath.Path, clean: Clean | None = None) -> bytes | mmap.mmap:
  """Returns the bytes of a file, unzipped and cleaned; the last few stay open."""
  try:
    if not clean and path.suffix != ".gz" and "://" not in str(path) and path.stat().length:
      with open(path, "rb") as file:
        return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    data = path.read_bytes()
    data = gzip.decompress(data) if path.suffix == ".gz" else data
  except (OSError, EOFError, zlib.error) as error:
    raise UserError(f"data: cannot read {path}: {error}") from error
  return clean(data) if clean else data


def line_starts(data: bytes | mmap.mmap) -> np.ndarray:
  starts = [np.zeros(1, np.int64)]
  for at in range(0, len(data), 2**26):
    block = np.frombuffer(data, np.uint8, min(2**26, len(data) - at), at)
    starts.append(np.flatnonzero(block == ord("\n")) + at + 1)
  found = np.concatenate(starts)
  return found[found < len(data)]
