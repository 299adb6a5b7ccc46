"""Sources of records, with the text under a key: JSON lines, parquet files, TensorFlow Datasets without TensorFlow."""

import dataclasses
import functools
import importlib
import json
from collections.abc import Sequence
from typing import Any

import numpy as np
from etils import epath

from lmjax.data.sources.base import LARGEST, BadRecord, Index, expand_paths, line_starts, parse_split, split_range
from lmjax.utils.errors import UserError, did_you_mean


@dataclasses.dataclass(frozen=True)
class JsonLines:
  """JSON objects, one a line, by path or glob; the text is under `key`."""

  files: str | tuple[str, ...]
  key: str = "text"
  split: str = ""

  @functools.cached_property
  def _index(self) -> Index:
    return Index(expand_paths(self.files), line_starts, self.split)

  def __len__(self) -> int:
    return len(self._index)

  def __getitem__(self, index: int) -> str | BadRecord:
    line = self._index.document(index)
    if isinstance(line, BadRecord) or not line.strip():
      return line
    try:
      record = json.loads(line)
    except json.JSONDecodeError as error:
      return BadRecord(self._index.where(index), f"is not JSON: {error.msg}")
    if not isinstance(record, dict):
      return BadRecord(self._index.where(index), f"is a JSON {type(record).__name__}, not an object")
    text = record.get(self.key)
    if not isinstance(text, str):
      return BadRecord(self._index.where(index), f"has no text under {self.key!r}; its keys: {', '.join(record)}")
    return text


@dataclasses.dataclass(frozen=True)
class Parquet:
  """Rows of parquet files, by path or glob; the text is in `key`.

  A row group is decoded at a time and a few are kept: reading in order is fast, drawing from large groups at random is
  not; prepare such files first.
  """

  files: str | tuple[str, ...]
  key: str = "text"
  split: str = ""

  @functools.cached_property
  def _groups(self) -> tuple[list[tuple[epath.Path, int]], np.ndarray]:
    """Each row group as (file, its number there), and the rows before each of them."""
    groups, rows = [], [0]
    for path in expand_paths(self.files):
      file = _parquet(path)
      if self.key not in file.schema_arrow.names:
        raise UserError(f"data: {path} has no column {self.key!r}{did_you_mean(self.key, file.schema_arrow.names)}")
      for i in range(file.num_row_groups):
        groups.append((path, i))
        rows.append(rows[-1] + file.metadata.row_group(i).num_rows)
    return groups, np.array(rows)

  @functools.cached_property
  def _numbers(self) -> range:
    return split_range(int(self._groups[1][-1]), self.split)

  def __len__(self) -> int:
    return len(self._numbers)

  def __getitem__(self, index: int) -> str | BadRecord:
    groups, rows = self._groups
    row = self._numbers[index]
    group = int(np.searchsorted(rows, row, side="right")) - 1
    path, number = groups[group]
    place = int(row - rows[group])
    where = f"{path}: row {place} of row group {number}"
    try:
      return _text(_row_group(path, number, self.key)[place].as_py(), where)
    except (OSError, ValueError) as error:  # what pyarrow raises for a damaged page
      return BadRecord(where, f"cannot be read: {error}")


@dataclasses.dataclass(frozen=True)
class TFDS:
  """A data set of TensorFlow Datasets, read without TensorFlow: `c4/en`, `lm1b`; the text is under `key`.

  split: as TFDS writes it, `train` or a part of it, `train[:90%]`. folder: where data sets are kept (default:
  ~/tensorflow_datasets), or the folder of this one, with its version.
  """

  name: str = ""
  split: str = "train"
  key: str = "text"
  folder: str = ""

  @functools.cached_property
  def _records(self) -> Sequence[dict[str, Any]]:
    builder = tfds_builder(self.name, self.folder)
    path = epath.Path(builder.data_dir)
    if not path.exists():
      raise UserError(
        f"data: {self.name} is not prepared in {path.parent}: lmjax prepare tfds {self.name}"
        + (f" --folder {self.folder}" if self.folder else "")
      )
    name, _ = parse_split(self.split)
    if name not in builder.info.splits:
      raise UserError(f"data: {self.name} has no split {name!r}{did_you_mean(name, builder.info.splits)}")
    try:
      return builder.as_data_source(name)
    except NotImplementedError as error:
      raise UserError(
        f"data: {path} is not kept as array_record, which is how it is read without TensorFlow; "
        f"lmjax prepare tfds {self.name} --folder ANOTHER"
      ) from error

  @functools.cached_property
  def _numbers(self) -> range:
    return split_range(len(self._records), parse_split(self.split)[1])

  def __len__(self) -> int:
    return len(self._numbers)

  def __getitem__(self, index: int) -> str | BadRecord:
    where = f"{self.name or self.folder}/{parse_split(self.split)[0]}:{self._numbers[index]}"
    try:
      record = self._records[self._numbers[index]]
    except (RuntimeError, ValueError, IndexError) as error:  # of a damaged shard
      return BadRecord(where, f"cannot be read: {error}")
    if self.key not in record:
      raise UserError(f"data: {self.name or self.folder} has no {self.key!r}{did_you_mean(self.key, record)}")
    try:
      value = record[self.key]
      return _text(value.decode("utf-8") if isinstance(value, bytes) else value, where)
    except UnicodeDecodeError as error:
      return BadRecord(where, f"is not UTF-8: {error.reason}")


def tfds_builder(name: str, folder: str = ""):
  """Returns the TFDS builder of a data set by name, or of one prepared in `folder`.

  Raises:
    UserError: TFDS knows no such data set.
  """
  import tensorflow_datasets as tfds

  for room in ("text", "translate", "summarization", "question_answering"):  # else theirs are "not found"
    importlib.import_module(f"tensorflow_datasets.{room}")
  if folder and (epath.Path(folder) / "dataset_info.json").exists():
    return tfds.builder_from_directory(folder)
  try:
    return tfds.builder(name, data_dir=folder or None)
  except tfds.core.DatasetNotFoundError as error:
    known = tfds.list_builders(with_community_datasets=False)
    raise UserError(f"data: TFDS has no data set {name!r}{did_you_mean(name.partition('/')[0], known)}") from error
  except ValueError as error:  # an unknown configuration of a known one
    raise UserError(f"data: {name}: {str(error).splitlines()[0]}") from error


def _text(value: Any, where: str) -> str | BadRecord:
  """Returns a value that should be a text, or says why it is none."""
  if not isinstance(value, str):
    return BadRecord(where, f"is {'empty' if value is None else f'of type {type(value).__name__}'}, not a text")
  if len(value) > LARGEST:
    return BadRecord(where, f"has {len(value):,} characters, more than the {LARGEST:,} of a document")
  return value


@functools.lru_cache(maxsize=64)
def _parquet(path: epath.Path):
  import pyarrow
  import pyarrow.parquet

  try:
    return pyarrow.parquet.ParquetFile(path.open("rb") if "://" in str(path) else str(path))
  except (OSError, pyarrow.ArrowInvalid) as error:
    raise UserError(f"data: cannot read {path}: {str(error).splitlines()[0]}") from error


@functools.lru_cache(maxsize=4)
def _row_group(path: epath.Path, number: int, key: str):
  return _parquet(path).read_row_group(number, columns=[key]).column(key)
