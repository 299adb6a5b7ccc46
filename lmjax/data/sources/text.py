"""Text files, split into documents."""

import dataclasses
import functools
import mmap
import re

import numpy as np

from lmjax.data.sources.base import BadRecord
from lmjax.data.sources.indexed import Clean, Index, expand_paths, line_starts
from lmjax.data.sources.kinds import check_text

# "CHAPTER IV. A Title", "Chapter 4", "BOOK TWO", "IV. A Title". Lines of a table of contents become documents too.
CHAPTER = re.compile(
  rb"^[ \t]*(?:(?:CHAPTER|Chapter|BOOK|Book|PART|Part|LETTER|Letter)[ \t]+(?:\d+|[IVXLCivxlc]+\b|[A-Z][A-Z-]+\b)"
  rb"|[IVXLC]+\.(?=[ \t]+[A-Z])).*$",
  re.MULTILINE,
)


@dataclasses.dataclass(frozen=True)
class TextFiles:
  """Text files by path or glob, split into documents.

  document: `file` makes a document of each file, `line` of each line, and `chunk` of about `chunk_bytes` bytes, up to
  the end of a line, so that all streams can read a single large file; `paragraph` splits at blank lines, `chapter` at
  chapter headings. split: as `:90%`, empty for all. shuffle: number the documents in a fixed random order, so that a
  split is a random sample of all files. clean: the dotted name of a function from the bytes of a file to the text in
  it, such as `lmjax.data.sources.text:gutenberg_body`.
  """

  files: str | tuple[str, ...]
  document: str = "chunk"
  chunk_bytes: int = 16_384
  split: str = ""
  shuffle: bool = False
  clean: Clean | None = None

  def __post_init__(self):
    if self.document not in ("chunk", "paragraph", "chapter", "line", "file"):
      raise ValueError(f"document must be chunk, paragraph, chapter, line or file, not {self.document!r}")
    if self.chunk_bytes < 1:
      raise ValueError(f"chunk_bytes must be at least 1, not {self.chunk_bytes}")

  @functools.cached_property
  def _index(self) -> Index:
    paths = expand_paths(self.files, (".txt", ".text", ".md"))
    check_text(paths)
    return Index(paths, self._starts, self.split, self.clean, self.shuffle)

  def _starts(self, data: bytes | mmap.mmap) -> np.ndarray:
    """Returns the offsets at which the documents of a file start."""
    if self.document == "file":
      return np.zeros(1, np.int64)
    if self.document == "paragraph":
      starts = [match.end() for match in re.finditer(rb"\r?\n(?:[ \t]*\r?\n)+", data)]
      return np.array([0, *starts], np.int64)
    if self.document == "chapter":
      starts = [match.start() for match in CHAPTER.finditer(data)]
      return np.array([0, *(start for start in starts if start)], np.int64)
    if self.document == "line":
      return line_starts(data)
    ends = (data.find(b"\n", offset) + 1 for offset in range(self.chunk_bytes - 1, len(data), self.chunk_bytes))
    return np.unique(np.array([0, *(end for end in ends if 0 < end < len(data))], np.int64))

  def __len__(self) -> int:
    return len(self._index)

  def __getitem__(self, index: int) -> str | BadRecord:
    return self._index.document(index)


def gutenberg_body(data: bytes) -> bytes:
  """Returns a Project Gutenberg book without its header and footer; other text unchanged."""
  start = re.search(rb"^\*\*\* ?START OF .*$", data, re.MULTILINE)
  end = re.search(rb"^\*\*\* ?END OF .*$", data, re.MULTILINE)
  return data[start.end() if start else 0 : end.start() if end else len(data)].strip()
