"""The offsets of the documents in files."""

import functools
import mmap
from collections.abc import Callable
from typing import Any

import numpy as np
from etils import epath

from lmjax.data.sources.base import BadRecord
from lmjax.data.sources.paths import Clean, expand_paths, read_bytes
from lmjax.data.sources.splits import split_range
from lmjax.utils.errors import reason

FindStarts = Callable[[bytes], np.ndarray]  # from the bytes of a file to the offsets at which its documents start

MAX_DOCUMENT = 16 * 2**20  # bytes; a larger document is skipped, as the text was probably not split


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
    self.lines: dict[int, np.ndarray] = {}  # where those of a file start
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
    within = i + 1 < len(self.starts) and self.file_of[i + 1] == file
    return file, int(self.starts[i]), int(self.starts[i + 1]) if within else self.ends[file]

  def document(self, index: int) -> str | BadRecord:
    """Returns a document, or why it cannot be read."""
    file, start, end = self._locate(index)
    if end - start > MAX_DOCUMENT:
      return BadRecord(self.where(index), f"has {end - start:,} bytes, more than {MAX_DOCUMENT:,}: split the document")
    try:
      return read_bytes(self.files[file], self.clean, self.ends[file])[start:end].decode("utf-8-sig")
    except UnicodeDecodeError as error:
      return BadRecord(self.where(index, error.start), f"is not UTF-8: {error.reason}")

  def where(self, index: int, offset: int = 0) -> str:
    """Returns `file:line` of a document, or of a byte in it."""
    file, start, _ = self._locate(index)
    if file not in self.lines:
      self.lines[file] = line_starts(read_bytes(self.files[file], self.clean, self.ends[file]))
    return f"{self.files[file]}:{np.searchsorted(self.lines[file], start + offset, 'right')}"


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
    except Exception as error:  # ValueErrors say what is wrong; others come from what a line contains, too
      return BadRecord(self._index.where(index), str(error) if isinstance(error, ValueError) else reason(error))


def line_starts(data: bytes | mmap.mmap) -> np.ndarray:
  """Returns the offsets at which lines start, int64."""
  starts = [np.zeros(1, np.int64)]
  for offset in range(0, len(data), 2**26):
    block = np.frombuffer(data, np.uint8, min(2**26, len(data) - offset), offset)
    starts.append(np.flatnonzero(block == ord("\n")) + offset + 1)
  offsets = np.concatenate(starts)
  return offsets[offsets < len(data)]
