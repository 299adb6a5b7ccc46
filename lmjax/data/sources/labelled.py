"""Labelled examples in tables, by column names."""

import csv
import dataclasses
import functools
import io
from collections.abc import Iterator

import numpy as np
from etils import epath

from lmjax.data.sources.base import BadRecord
from lmjax.data.sources.examples import Example
from lmjax.data.sources.indexed import expand_paths, read_bytes
from lmjax.data.sources.splits import split_range
from lmjax.utils.errors import UserError, did_you_mean


@dataclasses.dataclass(frozen=True)
class Table:
  """An example in each row of TSV or CSV files, by path or glob, plain or gzipped.

  text, other, label: columns by their names in the first row; without a `header`, by their numbers from 0. other: the
  second text of a pair; empty if there is none. form: `tsv`, in which quotes are literal, as in GLUE, or `csv`; by
  default what the name of the first file says. names: {label in the file: its name}, for labels that are numbers.
  split: as `:90%`, empty for all. shuffle: number the rows in a fixed random order, so that a split is a random sample.
  """

  files: str | tuple[str, ...]
  text: str = "sentence"
  label: str = "label"
  other: str = ""
  header: bool = True
  form: str = ""
  names: dict[str, str] = dataclasses.field(default_factory=dict)
  split: str = ""
  shuffle: bool = False

  def __post_init__(self):
    if self.form not in ("", "tsv", "csv"):
      raise ValueError(f"form is tsv or csv, not {self.form!r}")

  @functools.cached_property
  def _records(self) -> list[Example | BadRecord]:
    records = [record for path in expand_paths(self.files) for record in self._read(path)]
    order = np.arange(len(records))
    if self.shuffle:
      np.random.default_rng(0).shuffle(order)
    return [records[i] for i in order[split_range(len(order), self.split)]]

  def __len__(self) -> int:
    return len(self._records)

  def __getitem__(self, index: int) -> Example | BadRecord:
    return self._records[index]

  def _read(self, path: epath.Path) -> Iterator[Example | BadRecord]:
    columns, width = None, 0
    for where, fields in self._rows(path):
      if isinstance(fields, str):
        yield BadRecord(where, fields)
        continue
      if columns is None:
        columns, width = self._columns(path, fields), len(fields)
        if self.header:
          continue
      if len(fields) != width:
        yield BadRecord(where, f"has {len(fields)} fields, and the first row has {width}")
      elif any("\udc80" <= character <= "\udcff" for field in fields for character in field):
        yield BadRecord(where, "is not UTF-8")
      else:
        text, label, *other = (fields[i] for i in columns)
        yield Example(text, other[0] if other else None, self.names.get(label, label), where)

  def _rows(self, path: epath.Path) -> Iterator[tuple[str, list[str] | str]]:
    """Yields `file:line` and the fields of each row that is not blank, or why it cannot be read."""
    content = bytes(read_bytes(path)).decode("utf-8-sig", "surrogateescape")
    named = epath.Path(str(path).lower().removesuffix(".gz")).suffix == ".csv"
    if self.form == "tsv" or (not self.form and not named):
      for number, line in enumerate(content.split("\n"), 1):
        if line.strip():
          yield f"{path}:{number}", line.removesuffix("\r").split("\t")
      return
    reader, last = csv.reader(io.StringIO(content, newline=""), strict=True), 0
    while True:
      where = f"{path}:{last + 1}"
      try:
        fields = next(reader)
      except StopIteration:
        return
      except csv.Error as error:
        yield where, f"is not CSV: {error}"
      else:
        if fields:
          yield where, fields
      last = reader.line_num

  def _columns(self, path: epath.Path, first: list[str]) -> list[int]:
    """Returns the indices of text, label and other, where there is one."""
    columns = []
    for key in ("text", "label", "other"):
      name = getattr(self, key)
      if not name and key == "other":
        continue
      known = first if self.header else [str(i) for i in range(len(first))]
      if name not in known:
        raise UserError(
          f"data: {path} has no column {name!r}{did_you_mean(name, known)}; set {key} to one of {', '.join(known)}"
        )
      columns.append(known.index(name))
    return columns
