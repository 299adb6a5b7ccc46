"""The interface of sources, which give documents by index, and what sources of files share.

Files may be plain or gzipped, local or remote (`gs://...`). A plain local file is memory-mapped. A gzipped, cleaned or
remote file is read as a whole, and the last few are cached.
"""

import fnmatch
import functools
import glob
import gzip
import mmap
import re
import zlib
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
from etils import epath

from lmjax.utils.errors import UserError

FindStarts = Callable[[bytes], np.ndarray]  # from the bytes of a file to the offsets at which its documents start
Clean = Callable[[bytes], bytes]  # from the bytes of a file to the text in it, such as a book without its header

MAX_DOCUMENT = 16 * 2**20  # bytes; a larger document is skipped, as the text was probably not split
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


def split_range(count: int, split: str) -> range:
  """Returns the indices of a split of `count` items, given as a slice in percent: `:90%`, `90%:`, empty for all.

  Raises:
    UserError: the split has another form, or is empty.
  """
  match = re.fullmatch(r"(?:(\d+(?:\.\d+)?)%)?:(?:(\d+(?:\.\d+)?)%)?", split or ":")
  if not match:
    raise UserError(f"data: split {split!r} is not of the form ':90%', '90%:' or '80%:90%'")
  start, end = (float(p) if p else default for p, default in zip(match.groups(), (0.0, 100.0), strict=True))
  indices = range(int(count * start / 100), int(count * end / 100))
  if not indices:
    raise UserError(f"data: split {split!r} of {count} documents is empty: use more text or a larger split")
  return indices


def parse_split(split: str) -> tuple[str, str]:
  """Returns the name and the slice of a split in TFDS's syntax: ("train", ":90%") for `train[:90%]`.

  Raises:
    UserError: the split has another form.
  """
  match = re.fullmatch(r"([^\[\]]+)(?:\[([^\[\]]*)\])?", split)
  if not match:
    raise UserError(f"data: split {split!r} is not of the form 'train' or 'train[:90%]'")
  return match[1], match[2] or ""


def expand_paths(files: str | Sequence[str]) -> list[epath.Path]:
  """Returns the files that paths and globs match; those of each are sorted.

  Raises:
    UserError: a path or glob matches nothing.
  """
  patterns = [files] if isinstance(files, str) else list(files)
  paths: list[epath.Path] = []
  for pattern in patterns:
    path = epath.Path(pattern).expanduser()
    if "://" not in pattern:
      matches = [epath.Path(p) for p in glob.glob(str(path), recursive=True)]
    elif glob.has_magic(path.name):  # in a remote path, only the file name may be a pattern
      matches = [p for p in path.parent.iterdir() if fnmatch.fnmatch(p.name, path.name)]
    else:
      matches = [path]
    matches = sorted(p for p in matches if p.exists() and not p.is_dir())
    if not matches:
      raise UserError(
        f"data: no file matches {pattern!r} (the current directory is {epath.Path().resolve()}); "
        "set your text with --config configs/text.py:files=my/*.txt"
      )
    paths += matches
  return paths


class Index:
  """The documents of some files, by their offsets.

  find_starts: finds the offsets in the content of a file. split: as in `split_range`. clean: applied to the content
  first. shuffle: number the documents in a fixed random order.
  """

  def __init__(
    self, files: list[epath.Path], find_starts: FindStarts, split: str, clean: Clean | None = None,
    shuffle: bool = False,
  ):  # fmt: skip
    self.files, self.clean = files, clean
    starts, file_of, self.ends = [], [], []
    for number, path in enumerate(files):
      data = read_bytes(path, clean)
      starts.append(find_starts(data) if len(data) else np.zeros(0, np.int64))
      file_of.append(np.full(len(starts[-1]), number, np.int32))
      self.ends.append(len(data))
    self.starts, self.file_of = np.concatenate(starts), np.concatenate(file_of)
    order = np.arange(len(self.starts))
    if shuffle:
      np.random.default_rng(0).shuffle(order)
    self.order = order[split_range(len(order), split)]

  def __len__(self) -> int:
    return len(self.order)

  def _locate(self, index: int) -> tuple[int, int, int]:
    """Returns the number of the file, and the start and end of the document in it."""
    i = self.order[index]
    file = int(self.file_of[i])
    is_last = i + 1 == len(self.starts) or self.file_of[i + 1] != file
    return file, int(self.starts[i]), self.ends[file] if is_last else int(self.starts[i + 1])

  def document(self, index: int) -> str | BadRecord:
    """Returns a document, or why it cannot be read."""
    file, start, end = self._locate(index)
    if end - start > MAX_DOCUMENT:
      reason = f"has {end - start:,} bytes, more than the maximum of {MAX_DOCUMENT:,}: split it into smaller documents"
      return BadRecord(self.where(index), reason)
    try:
      return read_bytes(self.files[file], self.clean)[start:end].decode("utf-8")
    except UnicodeDecodeError as error:
      return BadRecord(self.where(index, error.start), f"is not UTF-8: {error.reason}")

  def where(self, index: int, offset: int = 0) -> str:
    """Returns `file:line` of a document, or of a byte in it."""
    file, start, _ = self._locate(index)
    data, end = read_bytes(self.files[file], self.clean), start + offset
    line = sum(data[i : min(i + 2**20, end)].count(b"\n") for i in range(0, end, 2**20)) + 1
    return f"{self.files[file]}:{line}"


class Lines:
  """A document for each line of some files; a subclass is a dataclass with these fields, and defines `parse`."""

  files: str | tuple[str, ...]
  split: str
  shuffle = False

  @functools.cached_property
  def _index(self) -> Index:
    return Index(expand_paths(self.files), line_starts, self.split, None, self.shuffle)

  def parse(self, line: str) -> Any:
    """Returns the document of a line.

    Raises:
      ValueError: what is wrong with the line, as the end of a sentence that starts with FILE:LINE.
    """
    raise NotImplementedError

  def __len__(self) -> int:
    return len(self._index)

  def __getitem__(self, index: int) -> Any:
    line = self._index.document(index)
    if isinstance(line, BadRecord):
      return line
    try:
      return self.parse(line)
    except ValueError as error:
      return BadRecord(self._index.where(index), str(error))


@functools.lru_cache(maxsize=16)
def read_bytes(path: epath.Path, clean: Clean | None = None) -> bytes | mmap.mmap:
  """Returns the content of a file, unzipped and cleaned; the last 16 are cached.

  Raises:
    UserError: the file cannot be read.
  """
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
  """Returns the offsets at which lines start, int64."""
  starts = [np.zeros(1, np.int64)]
  for offset in range(0, len(data), 2**26):
    block = np.frombuffer(data, np.uint8, min(2**26, len(data) - offset), offset)
    starts.append(np.flatnonzero(block == ord("\n")) + offset + 1)
  offsets = np.concatenate(starts)
  return offsets[offsets < len(data)]
