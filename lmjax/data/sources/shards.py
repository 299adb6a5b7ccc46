"""Prepared data: documents tokenized once, in array_record shards with an index.

    index.json                      splits; documents, tokens, bytes and SHA-256 of shards; tokenizer fingerprint
    tokenizer/                      the tokenizer itself
    train-00000.array_record ...    a record per document: the bytes of its text (uint32), then its ids

The index is written last: a folder without one is not prepared data, or its preparation has not finished.
"""

import dataclasses
import functools
import hashlib
import os
import struct
import tempfile
from collections.abc import Iterable
from typing import Any

import numpy as np
from array_record.python.array_record_module import ArrayRecordReader
from etils import epath

from lmjax.data.sources.base import BadRecord, Encoded
from lmjax.data.sources.splits import parse_split, split_range
from lmjax.utils.errors import UserError, did_you_mean, reason
from lmjax.utils.fields import Fields
from lmjax.utils.files import expand, inside, make_folder, read_json, reading, writing
from lmjax.utils.trust import check_links

VERSION = 1
SIZE = struct.Struct("<I")
UNFINISHED = "unfinished.jsonl"


@dataclasses.dataclass(frozen=True)
class Prepared:
  """The documents of one split of a prepared folder. split: `train`, `validation`, or a slice such as `train[:90%]`."""

  folder: str
  split: str = "train"

  @functools.cached_property
  def index(self) -> dict[str, Any]:
    """The content of index.json, after a check that all shards of the split exist and have the right size.

    Raises:
      UserError: the folder is not completely prepared, has no such split, or a shard is missing or truncated.
    """
    index = read_index(self.folder)
    folder = expand(self.folder)
    name, _ = parse_split(self.split)
    if name not in index["splits"]:
      raise UserError(f"data: {self.folder} has no split {name!r}{did_you_mean(name, index['splits'])}")
    if not index["splits"][name]:
      raise UserError(f"data: {self.folder} has no {name} documents; prepare it with another --validation")
    for shard in index["splits"][name]:
      path = inside(folder, shard["file"])
      if not path.exists():
        raise UserError(f"data: the shard {path} is missing; restore it or prepare the folder again")
      if path.stat().length != shard["size"]:
        raise UserError(
          f"data: the shard {path} has {path.stat().length:,} bytes instead of {shard['size']:,}: it is truncated or "
          "changed; restore it or prepare the folder again"
        )
    return index

  @functools.cached_property
  def _shards(self) -> tuple[list[epath.Path], np.ndarray]:
    """The files, and the number of documents before each of them."""
    shards = [s for s in self.index["splits"][parse_split(self.split)[0]] if s["documents"]]
    files = [inside(expand(self.folder), s["file"]) for s in shards]
    return files, np.cumsum([0, *(s["documents"] for s in shards)])

  @functools.cached_property
  def _indices(self) -> range:
    return split_range(int(self._shards[1][-1]), parse_split(self.split)[1])

  def __len__(self) -> int:
    return len(self._indices)

  def __getitem__(self, index: int) -> Encoded | BadRecord:
    files, before = self._shards
    number = self._indices[index]
    shard = int(np.searchsorted(before, number, side="right")) - 1
    offset = int(number - before[shard])
    try:
      (record,) = _reader(files[shard]).read([offset])
      ids = np.frombuffer(record, self.index["dtype"], offset=SIZE.size)
      return Encoded(ids, SIZE.unpack_from(record)[0], self.index["tokenizer"])
    except (RuntimeError, IndexError, ValueError, struct.error) as error:  # Riegeli stores a hash of every chunk
      return BadRecord(f"{files[shard]}: record {offset}", f"cannot be read: {reason(error)}")


def read_index(folder: epath.PathLike) -> dict[str, Any]:
  """Returns the content of index.json in a prepared folder.

  Raises:
    UserError: it does not exist, is corrupt or has another version.
  """
  folder = expand(folder)
  if folder.exists():
    check_links(folder)
  if not (folder / "index.json").exists():
    if (folder / UNFINISHED).exists():
      raise UserError(f"data: {folder} is not completely prepared; rerun the same `lmjax prepare` command to finish it")
    raise UserError(f"data: {folder} is not prepared data: it has no index.json; see lmjax prepare --help")
  try:
    fields = Fields(read_json(folder / "index.json"), "index.json")
    version = fields.integer("version")
    if version == VERSION:
      fields.section("made"), fields.text("tokenizer"), fields.text("dtype", choices=("<u2", "<u4"))
      check_counts(fields.section("counts"))
      splits = fields.section("splits")
      for split in splits.values:
        for shard in splits.sequence(split, dict):
          check_shard(folder, Fields(shard, "index.json", f"splits.{split}."))
  except UserError as error:
    raise UserError(f"data: {folder / 'index.json'} is corrupt: {error}; prepare the folder again") from error
  if version != VERSION:
    raise UserError(f"data: {folder} has version {version} of the format, this lmjax reads {VERSION}; prepare it again")
  return fields.values


def check_shard(folder: epath.Path, shard: Fields) -> dict[str, Any]:
  """Returns the entry of a shard in an index, whose values are what they must be."""
  inside(folder, shard.get("file", None)), shard.text("sha256")
  check_counts(shard, ("size", "documents", "tokens", "bytes"))
  return shard.values


def check_counts(counts: Fields, keys: Iterable[str] = ()) -> dict[str, int]:
  """Returns numbers of documents, tokens or bytes; of all keys, if none are given."""
  return {key: counts.integer(key, most=2**63) for key in keys or counts.values}


def check_sums(folder: epath.PathLike) -> None:
  """Raises UserError if a shard is missing or its SHA-256 differs from the one in the index."""
  for shards in read_index(folder)["splits"].values():
    for shard in shards:
      path = inside(expand(folder), shard["file"])
      if not path.exists() or digest(path) != shard["sha256"]:
        raise UserError(f"data: the shard {path} is missing or corrupt (SHA-256 differs); prepare the folder again")


def digest(path: epath.Path) -> str:
  """Returns the SHA-256 of a file."""
  with reading(path), path.open("rb") as file:
    return hashlib.file_digest(file, "sha256").hexdigest()


@functools.lru_cache(maxsize=512)
def _reader(path: epath.Path) -> ArrayRecordReader:
  if "://" in str(path):  # array_record reads local files only: download a remote shard once
    stat = path.stat()
    name = hashlib.sha256(f"{path} {stat.length} {stat.mtime}".encode()).hexdigest()[:16]
    local = epath.Path(tempfile.gettempdir()) / "lmjax-shards" / name
    if not local.exists():
      make_folder(local.parent)
      partial = epath.Path(f"{local}.{os.getpid()}")  # two processes may download it at the same time
      with writing(local):
        partial.write_bytes(path.read_bytes())
        partial.rename(local)
    path = local
  return ArrayRecordReader(str(path), "readahead_buffer_size:0", file_reader_buffer_size=32_768)
