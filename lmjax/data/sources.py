"""Sources: documents by number, so that any order and any share of them is a matter of arithmetic.

A source has a length and returns texts by index; a record that cannot be read is returned as `Bad`, counted and
skipped by the pipeline. Files may be plain or gzipped, local or remote (`gs://...`).
"""

import dataclasses
import fnmatch
import functools
import glob
import gzip
import json
import re
import zlib
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from etils import epath

from lmjax.data import corpus
from lmjax.utils.errors import UserError


class Bad(NamedTuple):
  """A record that could not be read: where it is, and why."""

  where: str
  why: str


def share(count: int, part: str) -> range:
  """Returns the numbers in a part of `count` things, written like a slice of percents: `:90%`, `90%:`, `` for all.

  Raises:
    UserError: the part is written otherwise, or holds nothing.
  """
  match = re.fullmatch(r"(?:(\d+(?:\.\d+)?)%)?:(?:(\d+(?:\.\d+)?)%)?", part or ":")
  if not match:
    raise UserError(f"data: part {part!r} is not of the form ':90%', '90%:' or '80%:90%'")
  start, end = (float(p) if p else whole for p, whole in zip(match.groups(), (0.0, 100.0), strict=True))
  numbers = range(int(count * start / 100), int(count * end / 100))
  if not numbers:
    raise UserError(f"data: part {part!r} of {count} documents is empty: give more text or a larger part")
  return numbers


@dataclasses.dataclass(frozen=True)
class Embedded:
  """The documentation of this Python, a document each topic and docstring."""

  part: str = ""

  @functools.cached_property
  def _texts(self) -> list[str]:
    texts = corpus.python_documentation()
    return [texts[i] for i in share(len(texts), self.part)]

  def __len__(self) -> int:
    return len(self._texts)

  def __getitem__(self, index: int) -> str:
    return self._texts[index]


@dataclasses.dataclass(frozen=True)
class TextFiles:
  """Text files by path or glob, cut into documents.

  document: `piece` cuts long files at line ends into pieces of about `piece` bytes (so that every stream finds work
  in a single large file); `paragraph` cuts at blank lines; `line` and `file` say what they do.
  """

  files: str | tuple[str, ...]
  document: str = "piece"
  piece: int = 16_384
  part: str = ""

  def __post_init__(self):
    if self.document not in ("piece", "paragraph", "line", "file"):
      raise ValueError(f"document is piece, paragraph, line or file, not {self.document!r}")
    if self.piece < 1:
      raise ValueError(f"piece is at least 1 byte, not {self.piece}")

  @functools.cached_property
  def _index(self) -> "_Index":
    return _Index(find(self.files), self._cut, self.part)

  def _cut(self, data: bytes) -> np.ndarray:
    """Returns where the documents of a file start."""
    if self.document == "file":
      return np.zeros(1, np.int64)
    if self.document == "paragraph":
      starts = [match.end() for match in re.finditer(rb"\r?\n(?:[ \t]*\r?\n)+", data)]
      return np.array([0, *starts], np.int64)
    lines = _line_starts(data)
    if self.document == "line":
      return lines
    wanted = np.arange(0, len(data), self.piece)
    return np.unique(lines[np.searchsorted(lines, wanted, side="right") - 1])

  def __len__(self) -> int:
    return len(self._index)

  def __getitem__(self, index: int) -> str | Bad:
    return self._index.document(index)


@dataclasses.dataclass(frozen=True)
class JsonLines:
  """JSON objects, one a line, by path or glob; the text is under `key`."""

  files: str | tuple[str, ...]
  key: str = "text"
  part: str = ""

  @functools.cached_property
  def _index(self) -> "_Index":
    return _Index(find(self.files), _line_starts, self.part)

  def __len__(self) -> int:
    return len(self._index)

  def __getitem__(self, index: int) -> str | Bad:
    line = self._index.document(index)
    if isinstance(line, Bad) or not line.strip():
      return line
    try:
      record = json.loads(line)
    except json.JSONDecodeError as error:
      return Bad(self._index.where(index), f"is not JSON: {error.msg}")
    if not isinstance(record, dict):
      return Bad(self._index.where(index), f"is a JSON {type(record).__name__}, not an object")
    text = record.get(self.key)
    if not isinstance(text, str):
      return Bad(self._index.where(index), f"has no text under {self.key!r}; its keys: {', '.join(record)}")
    return text


def find(files: str | Sequence[str]) -> list[epath.Path]:
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


class _Index:
  """Where each document of some files starts and ends."""

  def __init__(self, files: list[epath.Path], cut, part: str):
    self.files = files
    starts, owners, self.ends = [], [], []
    for number, path in enumerate(files):
      data = _read(number, path)
      cuts = cut(data)
      starts.append(cuts)
      owners.append(np.full(len(cuts), number))
      self.ends.append(len(data))
    self.starts, self.owners = np.concatenate(starts), np.concatenate(owners)
    self.numbers = share(len(self.starts), part)

  def __len__(self) -> int:
    return len(self.numbers)

  def _place(self, index: int) -> tuple[int, int, int]:
    """Returns the file, start and end of a document."""
    i = self.numbers[index]
    owner = int(self.owners[i])
    last = i + 1 == len(self.starts) or self.owners[i + 1] != owner
    return owner, int(self.starts[i]), self.ends[owner] if last else int(self.starts[i + 1])

  def document(self, index: int) -> str | Bad:
    owner, start, end = self._place(index)
    try:
      return _read(owner, self.files[owner])[start:end].decode("utf-8")
    except UnicodeDecodeError as error:
      return Bad(self.where(index, error.start), f"is not UTF-8: {error.reason}")

  def where(self, index: int, offset: int = 0) -> str:
    """Returns `file:line` of a document, or of a byte in it."""
    owner, start, _ = self._place(index)
    line = _read(owner, self.files[owner]).count(b"\n", 0, start + offset) + 1
    return f"{self.files[owner]}:{line}"


@functools.lru_cache(maxsize=16)
def _read(_number: int, path: epath.Path) -> bytes:
  """Returns the bytes of a file, unzipped; the last few stay in memory."""
  try:
    data = path.read_bytes()
    return gzip.decompress(data) if path.suffix == ".gz" else data
  except (OSError, EOFError, zlib.error) as error:
    raise UserError(f"data: cannot read {path}: {error}") from error


def _line_starts(data: bytes) -> np.ndarray:
  ends = np.flatnonzero(np.frombuffer(data, np.uint8) == ord("\n")) + 1
  starts = np.concatenate([[0], ends])
  return starts[starts < len(data)] if len(data) else starts[:0]
