"""Prepared data: documents tokenized once, in array_record shards beside an index that says what they hold.

    index.json                      splits, shards with documents, tokens, bytes and SHA-256; tokenizer fingerprint
    tokenizer/                      the tokenizer itself
    train-00000.array_record ...    a record a document: its text's size in bytes (uint32), then its ids

The index is written last: a folder without one is not prepared, or not to its end.
"""

import dataclasses
import functools
import hashlib
import json
import os
import struct
import tempfile
from typing import Any

import numpy as np
from array_record.python.array_record_module import ArrayRecordReader
from etils import epath

from lmjax.data.sources.base import BadRecord, Encoded, parse_split, split_range
from lmjax.utils.errors import UserError, did_you_mean

VERSION = 1
SIZE = struct.Struct("<I")
UNFINISHED = "unfinished.jsonl"


@dataclasses.dataclass(frozen=True)
class Prepared:
  """The documents of one split of a prepared folder."""

  folder: str
  split: str = "train"  # or a part of it, train[:90%]

  @functools.cached_property
  def index(self) -> dict[str, Any]:
    """What index.json says; every shard is there and of its size.

    Raises:
      UserError: the folder is not prepared, or not to its end; a shard is missing or truncated.
    """
    index = read_index(self.folder)
    folder = epath.Path(self.folder).expanduser()
    name, _ = parse_split(self.split)
    if name not in index["splits"]:
      raise UserError(f"data: {self.folder} has no split {name!r}{did_you_mean(name, index['splits'])}")
    if not index["splits"][name]:
      raise UserError(f"data: {self.folder} holds no {name} documents; prepare it with another --validation")
    for shard in index["splits"][name]:
      path = folder / shard["file"]
      if not path.exists():
        raise UserError(f"data: the shard {path} is missing; bring it back or prepare the folder again")
      if path.stat().length != shard["size"]:
        raise UserError(
          f"data: the shard {path} has {path.stat().length:,} bytes and should have {shard['size']:,}: it is truncated "
          "or changed; bring it back or prepare the folder again"
        )
    return index

  @functools.cached_property
  def _shards(self) -> tuple[list[epath.Path], np.ndarray]:
    """The files, and the documents before each of them."""
    shards = [s for s in self.index["splits"][parse_split(self.split)[0]] if s["documents"]]
    files = [epath.Path(self.folder).expanduser() / s["file"] for s in shards]
    return files, np.cumsum([0, *(s["documents"] for s in shards)])

  @functools.cached_property
  def _numbers(self) -> range:
    return split_range(int(self._shards[1][-1]), parse_split(self.split)[1])

  def __len__(self) -> int:
    return len(self._numbers)

  def __getitem__(self, index: int) -> Encoded | BadRecord:
    files, before = self._shards
    number = self._numbers[index]
    shard = int(np.searchsorted(before, number, side="right")) - 1
    place = int(number - before[shard])
    try:
      (record,) = _reader(files[shard]).read([place])
    except (RuntimeError, IndexError, ValueError) as error:  # Riegeli keeps a hash of every chunk
      return BadRecord(f"{files[shard]}: record {place}", f"cannot be read: {error}")
    ids = np.frombuffer(record, self.index["dtype"], offset=SIZE.size)
    return Encoded(ids, SIZE.unpack_from(record)[0], self.index["tokenizer"])


def read_index(folder: epath.PathLike) -> dict[str, Any]:
  """Returns index.json of a prepared folder.

  Raises:
    UserError: there is none, or it is damaged or of another version.
  """
  folder = epath.Path(folder).expanduser()
  if not (folder / "index.json").exists():
    if (folder / UNFINISHED).exists():
      raise UserError(f"data: {folder} is prepared in part only; run its `lmjax prepare` again to finish it")
    raise UserError(f"data: {folder} is not prepared data: it has no index.json; see lmjax prepare --help")
  try:
    index = json.loads((folder / "index.json").read_text())
    version = index["version"]
  except (json.JSONDecodeError, KeyError, TypeError) as error:
    raise UserError(f"data: {folder / 'index.json'} is damaged: {error}; prepare the folder again") from error
  if version != VERSION:
    raise UserError(f"data: {folder} was prepared in version {version} of the format, this lmjax reads {VERSION}")
  return index


def check_sums(folder: epath.PathLike) -> None:
  """Raises UserError, naming the shard, if the bytes of one are not those that were written."""
  for shards in read_index(folder)["splits"].values():
    for shard in shards:
      path = epath.Path(folder).expanduser() / shard["file"]
      if not path.exists() or digest(path) != shard["sha256"]:
        raise UserError(f"data: the shard {path} is missing or not what was written (SHA-256 differs)")


def digest(path: epath.Path) -> str:
  """Returns the SHA-256 of a file."""
  found = hashlib.sha256()
  with path.open("rb") as file:
    while block := file.read(2**22):
      found.update(block)
  return found.hexdigest()


@functools.lru_cache(maxsize=512)
def _reader(path: epath.Path) -> ArrayRecordReader:
  if "://" in str(path):  # array_record reads local files: a remote shard is fetched once
    stat = path.stat()
    name = hashlib.sha256(f"{path} {stat.length} {stat.mtime}".encode()).hexdigest()[:16]
    local = epath.Path(tempfile.gettempdir()) / "lmjax-shards" / name
    if not local.exists():
      local.parent.mkdir(parents=True, exist_ok=True)
      partial = epath.Path(f"{local}.{os.getpid()}")  # two processes may fetch it at a time
      partial.write_bytes(path.read_bytes())
      partial.rename(local)
    path = local
  return ArrayRecordReader(str(path), "readahead_buffer_size:0", file_reader_buffer_size=32_768)
