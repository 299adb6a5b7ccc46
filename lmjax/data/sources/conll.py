"""Sentences of words with a tag each, in CoNLL's format: a word in each line, a blank line after each sentence."""

import dataclasses
import functools
from collections.abc import Iterator
from typing import ClassVar

from etils import epath

from lmjax.data.sources.base import BadRecord
from lmjax.data.sources.examples import Tagged
from lmjax.data.sources.paths import expand_paths, read_bytes
from lmjax.data.sources.splits import split_range


@dataclasses.dataclass(frozen=True)
class Conll:
  """Files of sentences, by path or glob, plain or gzipped; columns are separated by tabs or spaces.

  word, tag: columns by their numbers from 0, or from the end, -1 for the last. split: as `:90%`, empty for all. Lines
  `-DOCSTART-` are left out. A sentence with a line that lacks a column is malformed.
  """

  negative: ClassVar = ("word", "tag")

  files: str | tuple[str, ...]
  word: int = 0
  tag: int = -1
  split: str = ""

  @functools.cached_property
  def _records(self) -> list[Tagged | BadRecord]:
    records = [record for path in expand_paths(self.files) for record in self._read(path)]
    return [records[i] for i in split_range(len(records), self.split)]

  def __len__(self) -> int:
    return len(self._records)

  def __getitem__(self, index: int) -> Tagged | BadRecord:
    return self._records[index]

  def _read(self, path: epath.Path) -> Iterator[Tagged | BadRecord]:
    content = bytes(read_bytes(path)).decode("utf-8-sig", "surrogateescape")
    lines: list[tuple[int, str]] = []
    for number, line in enumerate([*content.split("\n"), ""], 1):
      if line.strip() and not line.startswith("-DOCSTART-"):
        lines.append((number, line.rstrip("\r")))
      elif lines:
        yield self._parse(path, lines)
        lines = []

  def _parse(self, path: epath.Path, lines: list[tuple[int, str]]) -> Tagged | BadRecord:
    separator = "\t" if "\t" in lines[0][1] else None
    rows = [line.split(separator) for _, line in lines]
    needed = max(2, *(i + 1 if i >= 0 else -i for i in (self.word, self.tag)))
    words, tags = [], []
    for (number, line), row in zip(lines, rows, strict=True):
      if len(row) < needed or len(row) != len(rows[0]) or not row[self.word].strip() or not row[self.tag].strip():
        return BadRecord(f"{path}:{number}", f"has not a word and a tag in {len(rows[0])} columns")
      if any("\udc80" <= character <= "\udcff" for character in line):
        return BadRecord(f"{path}:{number}", "is not UTF-8")
      words.append(row[self.word].strip())
      tags.append(row[self.tag].strip())
    return Tagged(tuple(words), tuple(tags), f"{path}:{lines[0][0]}")
