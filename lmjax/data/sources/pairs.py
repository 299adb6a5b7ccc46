"""Sources of pairs of texts: what is given, and what is to be written."""

import dataclasses
import functools
import json
import re
from typing import NamedTuple

from lmjax.data.sources.base import BadRecord, Index, expand_paths, line_starts
from lmjax.utils.errors import UserError


class Pair(NamedTuple):
  """A source text and a target text."""

  source: str
  target: str


@dataclasses.dataclass(frozen=True)
class ParallelLines:
  """Line i of `sources` beside line i of `targets`; files plain or gzipped. `prefix` says which task it is.

  shuffle: lines are numbered in a fixed random order, so that a part is a sample.
  """

  sources: str | tuple[str, ...]
  targets: str | tuple[str, ...]
  split: str = ""
  prefix: str = ""
  shuffle: bool = False

  @functools.cached_property
  def _indices(self) -> tuple[Index, Index]:
    found = [
      Index(expand_paths(files), line_starts, self.split, None, self.shuffle) for files in (self.sources, self.targets)
    ]
    if len(found[0].starts) != len(found[1].starts):
      lines = [len(side.starts) for side in found]
      raise UserError(f"data: {self.sources} has {lines[0]} lines and {self.targets} has {lines[1]}: no pairs")
    return tuple(found)

  def __len__(self) -> int:
    return len(self._indices[0])

  def __getitem__(self, index: int) -> Pair | BadRecord:
    source, target = (side.document(index) for side in self._indices)
    bad = next((side for side in (source, target) if isinstance(side, BadRecord)), None)
    return bad or Pair(self.prefix + source.strip(), target.strip())


@dataclasses.dataclass(frozen=True)
class PatternLines:
  """A pair a line: the two groups of a regular expression, by default what a tab separates.

  SCAN: `IN: (.*) OUT: (.*)`.
  """

  files: str | tuple[str, ...]
  pattern: str = r"([^\t]*)\t(.*)"
  split: str = ""
  prefix: str = ""
  shuffle: bool = False

  def __post_init__(self):
    try:
      groups = re.compile(self.pattern).groups
    except re.error as error:
      raise ValueError(f"pattern {self.pattern!r} is no regular expression: {error}") from error
    if groups != 2:
      raise ValueError(f"pattern {self.pattern!r} has {groups} groups, not the two of source and target")

  @functools.cached_property
  def _index(self) -> Index:
    return Index(expand_paths(self.files), line_starts, self.split, None, self.shuffle)

  def __len__(self) -> int:
    return len(self._index)

  def __getitem__(self, index: int) -> Pair | BadRecord:
    line = self._index.document(index)
    if isinstance(line, BadRecord):
      return line
    match = re.match(self.pattern, line.rstrip("\r\n"))
    if not match:
      return BadRecord(self._index.where(index), f"is not of the form {self.pattern!r}")
    return Pair(self.prefix + match[1], match[2])


@dataclasses.dataclass(frozen=True)
class JsonPairs:
  """JSON objects, one a line; the texts are under `source` and `target`."""

  files: str | tuple[str, ...]
  source: str = "source"
  target: str = "target"
  split: str = ""
  prefix: str = ""

  @functools.cached_property
  def _index(self) -> Index:
    return Index(expand_paths(self.files), line_starts, self.split)

  def __len__(self) -> int:
    return len(self._index)

  def __getitem__(self, index: int) -> Pair | BadRecord:
    line = self._index.document(index)
    if isinstance(line, BadRecord):
      return line
    try:
      record = json.loads(line)
      return Pair(self.prefix + record[self.source], record[self.target] + "")
    except (json.JSONDecodeError, KeyError, TypeError) as error:
      return BadRecord(self._index.where(index), f"has no texts under {self.source!r} and {self.target!r}: {error}")
