"""Sources of records with the text under a key: JSON lines, parquet files, TensorFlow Datasets without TensorFlow."""

import contextlib
import dataclasses
import functools
import importlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from etils import epath

from lmjax.data.sources.base import BadRecord
from lmjax.data.sources.indexed import MAX_DOCUMENT, Lines, expand_paths
from lmjax.data.sources.splits import parse_split, split_range
from lmjax.utils import trust
from lmjax.utils.errors import UserError, did_you_mean, one_line, reason
from lmjax.utils.files import expand, parse_json, read_bytes, reading


@dataclasses.dataclass(frozen=True)
class JsonLines(Lines):
  """A JSON object in each line of files, by path or glob; the text is under `key`. split: as `:90%`, empty for all."""

  files: str | tuple[str, ...]
  key: str = "text"
  split: str = ""

  def parse(self, line: str) -> str:
    if not line.strip():
      return line
    record = parse_json(line)
    text = record.get(self.key)
    if not isinstance(text, str):
      raise ValueError(f"has no text under {self.key!r}; its keys: {', '.join(record)}")
    return text


@dataclasses.dataclass(frozen=True)
class Parquet:
  """Rows of parquet files, by path or glob; the text is in the column `key`. split: as `:90%`, empty for all.

  A row group is decoded as a whole, and the last four are cached. So reading in order is fast, but random access to
  large row groups is slow: run `lmjax prepare` on such files first.
  """

  files: str | tuple[str, ...]
  key: str = "text"
  split: str = ""

  @functools.cached_property
  def _groups(self) -> tuple[list[tuple[epath.Path, int]], np.ndarray]:
    """Each row group as (file, number in the file), and the number of rows before each of them."""
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
  def _indices(self) -> range:
    return split_range(int(self._groups[1][-1]), self.split)

  def __len__(self) -> int:
    return len(self._indices)

  def __getitem__(self, index: int) -> str | BadRecord:
    groups, rows = self._groups
    row = self._indices[index]
    group = int(np.searchsorted(rows, row, side="right")) - 1
    path, number = groups[group]
    offset = int(row - rows[group])
    where = f"{path}: row {offset} of row group {number}"
    try:
      return _check_text(_row_group(path, number, self.key)[offset].as_py(), where)
    except (OSError, ValueError) as error:  # what pyarrow raises for a corrupt page
      return BadRecord(where, f"cannot be read: {error}")


@dataclasses.dataclass(frozen=True)
class TFDS:
  """A dataset of TensorFlow Datasets, read without TensorFlow: `c4/en`, `lm1b`; the text is under `key`.

  split: in TFDS's syntax, `train` or `train[:90%]`. folder: the data directory of TFDS (default:
  ~/tensorflow_datasets), or the folder of one version of this dataset.
  """

  name: str = ""
  split: str = "train"
  key: str = "text"
  folder: str = ""

  @functools.cached_property
  def builder(self) -> Any:
    """TFDS's builder of the dataset, which knows its features."""
    return tfds_builder(self.name, self.folder)

  @functools.cached_property
  def _records(self) -> Sequence[dict[str, Any]]:
    builder = self.builder
    path = epath.Path(builder.data_dir)
    if not path.exists():
      raise UserError(
        f"data: {self.name} is not prepared in {path.parent}; run lmjax prepare tfds {self.name}"
        + (f" --folder {self.folder}" if self.folder else "")
      )
    name, _ = parse_split(self.split)
    if name not in builder.info.splits:
      raise UserError(f"data: {self.name} has no split {name!r}{did_you_mean(name, builder.info.splits)}")
    try:
      return builder.as_data_source(name)
    except NotImplementedError as error:
      raise UserError(
        f"data: {path} is not stored as array_record, which is needed to read it without TensorFlow; "
        f"run lmjax prepare tfds {self.name} --folder ANOTHER"
      ) from error

  @functools.cached_property
  def _indices(self) -> range:
    return split_range(len(self._records), parse_split(self.split)[1])

  def __len__(self) -> int:
    return len(self._indices)

  def where(self, index: int) -> str:
    """Returns the name and the number of a record."""
    return f"{self.name or self.folder}/{parse_split(self.split)[0]}:{self._indices[index]}"

  def record(self, index: int) -> dict[str, Any] | BadRecord:
    """Returns all of a record, or why it cannot be read."""
    try:
      return self._records[self._indices[index]]
    except (RuntimeError, ValueError, IndexError) as error:  # the shard is corrupt
      return BadRecord(self.where(index), f"cannot be read: {error}")

  def __getitem__(self, index: int) -> str | BadRecord:
    where, record = self.where(index), self.record(index)
    if isinstance(record, BadRecord):
      return record
    if self.key not in record:
      raise UserError(f"data: {self.name or self.folder} has no key {self.key!r}{did_you_mean(self.key, record)}")
    try:
      value = record[self.key]
      return _check_text(value.decode("utf-8") if isinstance(value, bytes) else value, where)
    except UnicodeDecodeError as error:
      return BadRecord(where, f"is not UTF-8: {error.reason}")


def tfds_builder(name: str, folder: str = "") -> Any:
  """Returns the TFDS builder of a dataset by name, or of the one that is prepared in `folder`.

  Raises:
    UserError: TFDS has no such dataset, or the dataset has no such configuration.
  """
  import tensorflow_datasets as tfds

  for topic in ("text", "translate", "summarization", "question_answering"):  # importing a topic registers its datasets
    importlib.import_module(f"tensorflow_datasets.{topic}")
  if folder:
    check_features(folder)
  if folder and (expand(folder) / "dataset_info.json").exists():
    return tfds.builder_from_directory(folder)
  try:
    return tfds.builder(name, data_dir=folder or None)
  except tfds.core.DatasetNotFoundError as error:
    known = tfds.list_builders(with_community_datasets=False)
    raise UserError(f"data: TFDS has no dataset {name!r}{did_you_mean(name.partition('/')[0], known)}") from error
  except ValueError as error:  # an unknown configuration of a known dataset
    raise UserError(f"data: {name}: {str(error).splitlines()[0]}") from error


def check_features(folder: epath.PathLike) -> None:
  """Raises UntrustedError where a dataset names classes that are not TFDS's own: TFDS would import them."""
  names: list[Any] = []

  def collect(values: list[tuple[str, Any]]) -> dict[str, Any]:
    names.extend(value for key, value in values if key in ("pythonClassName", "python_class_name", "type"))
    return dict(values)

  for level in range(4):  # the folder of a version, a configuration, a dataset, of all datasets
    for file in () if trust.ALL in trust.trusted() else expand(folder).glob("*/" * level + "features.json"):
      try:
        parse_json(read_bytes(file), make=collect)
      except ValueError as error:
        raise UserError(f"{file} {error}") from error
      for name in names:
        if isinstance(name, str) and not name.startswith("tensorflow_datasets."):
          raise trust.UntrustedError(f"{file} names {one_line(name, 100)!r}, which is not TFDS's own; {trust.ADVICE}")


def prepare_tfds(name: str, folder: str = "") -> tuple[str, dict[str, int]]:
  """Downloads a dataset of TensorFlow Datasets and stores it as array_record.

  Returns:
    its folder, and the number of examples in each split.

  Raises:
    UserError: TFDS has no such dataset, or it cannot be prepared (no network, no Apache Beam, no space).
  """
  import tensorflow_datasets as tfds

  builder = tfds_builder(name, folder)
  options = {}
  with contextlib.suppress(ImportError):  # TFDS itself reports that a dataset needs Beam
    import apache_beam as beam

    options["beam_options"] = beam.options.pipeline_options.PipelineOptions()
  try:
    builder.download_and_prepare(file_format="array_record", download_config=tfds.download.DownloadConfig(**options))
  except (OSError, ImportError, RuntimeError) as error:
    reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    raise UserError(f"prepare: {name} cannot be prepared: {reason}") from error
  return str(builder.data_dir), {split: info.num_examples for split, info in builder.info.splits.items()}


def _check_text(value: Any, where: str) -> str | BadRecord:
  """Returns the value if it is a string of at most MAX_DOCUMENT characters, otherwise why it is skipped."""
  if not isinstance(value, str):
    return BadRecord(where, f"is {'empty' if value is None else f'of type {type(value).__name__}'}, not a string")
  if len(value) > MAX_DOCUMENT:
    return BadRecord(where, f"has {len(value):,} characters, more than the maximum of {MAX_DOCUMENT:,}")
  return value


@functools.lru_cache(maxsize=64)
def _parquet(path: epath.Path):
  import pyarrow
  import pyarrow.parquet

  try:
    with reading(path):
      return pyarrow.parquet.ParquetFile(path.open("rb") if "://" in str(path) else str(path))
  except pyarrow.ArrowInvalid as error:
    raise UserError(f"{path} cannot be read: {reason(error)}") from error


@functools.lru_cache(maxsize=4)
def _row_group(path: epath.Path, number: int, key: str):
  return _parquet(path).read_row_group(number, columns=[key]).column(key)
