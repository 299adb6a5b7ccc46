"""Sources of pairs: a source, and the target to generate from it."""

import dataclasses
import functools
import re

from lmjax.data.sources.base import BadRecord
from lmjax.data.sources.indexed import Index, Lines, expand_paths, line_starts
from lmjax.data.sources.pair import Pair
from lmjax.utils.errors import UserError
from lmjax.utils.files import parse_json


@dataclasses.dataclass(frozen=True)
class ParallelLines:
  """Line i of `sources` as the source of line i of `targets`; files may be plain or gzipped.

  split: as `:90%`, empty for all. prefix: string before every source, to name the task. shuffle: number the lines in a
  fixed random order, so that a split is a random sample.
  """

  sources: str | tuple[str, ...]
  targets: str | tuple[str, ...]
  split: str = ""
  prefix: str = ""
  shuffle: bool = False

  @functools.cached_property
  def _indices(self) -> tuple[Index, Index]:
    source, target = (
      Index(expand_paths(files), line_starts, self.split, None, self.shuffle) for files in (self.sources, self.targets)
    )
    if len(source.starts) != len(target.starts):
      raise UserError(
        f"data: {self.sources} has {len(source.starts)} lines and {self.targets} has {len(target.starts)}; parallel "
        "files need the same number of lines"
      )
    return source, target

  def __len__(self) -> int:
    return len(self._indices[0])

  def __getitem__(self, index: int) -> Pair | BadRecord:
    source, target = (side.document(index) for side in self._indices)
    for line in (source, target):
      if isinstance(line, BadRecord):
        return line
    return Pair(self.prefix + source.strip(), target.strip())


@dataclasses.dataclass(frozen=True)
class PatternLines(Lines):
  """A pair in each line: the two groups of a regular expression, by default the columns on either side of a tab.

  For SCAN, the pattern is `IN: (.*) OUT: (.*)`. split, prefix, shuffle: as in `ParallelLines`.
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
      raise ValueError(f"pattern {self.pattern!r} is not a regular expression: {error}") from error
    if groups != 2:
      raise ValueError(f"pattern {self.pattern!r} must have two groups, source and target, not {groups}")

  def parse(self, line: str) -> Pair:
    match = re.match(self.pattern, line.rstrip("\r\n"))
    if not match:
      raise ValueError(f"does not match the pattern {self.pattern!r}")
    return Pair(self.prefix + match[1], match[2])


@dataclasses.dataclass(frozen=True)
class JsonPairs(Lines):
  """A JSON object in each line; source, target: their keys. split, prefix: as in `ParallelLines`."""

  files: str | tuple[str, ...]
  source: str = "source"
  target: str = "target"
  split: str = ""
  prefix: str = ""

  def parse(self, line: str) -> Pair:
    record = parse_json(line)
    source, target = record.get(self.source), record.get(self.target)
    if not isinstance(source, str) or not isinstance(target, str):
      raise ValueError(
        f"does not have strings under {self.source!r} and {self.target!r}; its keys: {', '.join(record)}"
      )
    return Pair(self.prefix + source, target)
