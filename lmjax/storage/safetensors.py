"""Safetensors: headers are checked, tensors are mapped, and files are written one tensor at a time."""

import collections
import json
import math
from collections.abc import Iterable
from typing import Any

import ml_dtypes
import numpy as np
from etils import epath

from lmjax.storage.lazy import mapped
from lmjax.utils import files
from lmjax.utils.errors import UserError, one_line
from lmjax.utils.fields import Fields

DTYPES = {
  "F64": np.float64, "F32": np.float32, "F16": np.float16, "BF16": ml_dtypes.bfloat16, "I64": np.int64, "I32": np.int32,
  "I16": np.int16, "I8": np.int8, "U64": np.uint64, "U32": np.uint32, "U16": np.uint16, "U8": np.uint8,
  "BOOL": np.bool_, "C64": np.complex64, "F8_E4M3": ml_dtypes.float8_e4m3fn, "F8_E5M2": ml_dtypes.float8_e5m2,
  "F8_E4M3FNUZ": ml_dtypes.float8_e4m3fnuz, "F8_E5M2FNUZ": ml_dtypes.float8_e5m2fnuz,
  "F8_E8M0": ml_dtypes.float8_e8m0fnu,
}  # fmt: skip
NAMES = {np.dtype(dtype): name for name, dtype in DTYPES.items()}
INDEX = "model.safetensors.index.json"
LARGEST_HEADER = 100 * 2**20  # bytes, by the format's own limit


class Tensors:
  """The tensors of a folder by name, or of one of its files; opening reads headers only."""

  def __init__(self, folder: epath.PathLike, name: str = ""):
    self.folder = epath.Path(folder)
    self.files = [self.folder / name] if name else self._find_files()
    index = self.folder / INDEX
    owners = owners_of(index) if index.exists() else {}
    self._entries: dict[str, tuple[epath.Path, np.dtype, tuple[int, ...], int]] = {}
    for file in self.files:
      for name, entry in _read_header(file).items():
        if owners.get(name, file.name) != file.name:
          continue  # a tensor that another file has, says the index
        if name in self._entries:
          raise UserError(f"{file}: the tensor {name} is also in {self._entries[name][0].name}")
        self._entries[name] = (file, *entry)
    missing = next((name for name in owners if name not in self._entries), None)
    if missing is not None:
      raise UserError(f"{index}: {owners[missing]} does not have the tensor {missing}")

  def _find_files(self) -> list[epath.Path]:
    index, single = self.folder / INDEX, self.folder / "model.safetensors"
    if index.exists():
      return shards(index)
    if single.exists():
      return [single]
    pickled = [p.name for p in self.folder.iterdir() if p.suffix in (".bin", ".pt", ".pth", ".ckpt")]
    if pickled:
      raise UserError(
        f"{self.folder / pickled[0]} is a pickle, and loading a pickle can run arbitrary code; load it with "
        "transformers and save it as safetensors: model.save_pretrained(folder)"
      )
    raise UserError(f"{self.folder} has no model.safetensors")

  def __iter__(self):
    return iter(self._entries)

  def __contains__(self, name: str) -> bool:
    return name in self._entries

  def shape(self, name: str) -> tuple[int, ...]:
    """Returns the shape of a tensor."""
    return self._entries[name][2]

  def dtype(self, name: str) -> np.dtype:
    """Returns the dtype of a tensor."""
    return self._entries[name][1]

  def __getitem__(self, name: str) -> np.ndarray:
    """Returns a tensor, mapped and not yet read."""
    file, dtype, shape, offset = self._entries[name]
    if not math.prod(shape):
      return np.zeros(shape, dtype)
    return mapped(file, dtype, offset, shape)


def owners_of(index: epath.Path) -> dict[str, str]:
  """Returns {tensor: the name of the file that has it}, as an index says.

  Raises:
    UserError: the index cannot be read, or points outside its folder.
  """
  owners = Fields(files.read_json(index), index).section("weight_map").values
  return {tensor: files.inside(index.parent, name).name for tensor, name in owners.items()}


def shards(index: epath.Path) -> list[epath.Path]:
  """Returns the files that an index names.

  Raises:
    UserError: the index cannot be read, points outside its folder, or names a missing file.
  """
  paths = [index.parent / name for name in sorted(set(owners_of(index).values()))]
  for path in paths:
    if path.is_dir() or not path.exists():
      raise UserError(f"{index} names {path.name}, which is missing")
  return paths


def _read_header(file: epath.Path) -> dict[str, tuple[np.dtype, tuple[int, ...], int]]:
  """Returns dtype, shape and offset in bytes of each tensor of a file.

  Raises:
    UserError: the file is truncated, or its header contradicts it.
  """
  with files.reading(file), file.open("rb") as opened:
    size = file.stat().length
    length = int.from_bytes(opened.read(8), "little")
    if size < 8 or length > min(size - 8, LARGEST_HEADER):
      raise UserError(f"{file} is corrupt: it has {size:,} bytes and a header of {length:,}")
    try:
      header = Fields(files.parse_json(opened.read(length), make=unique_keys), file)
    except ValueError as error:
      raise UserError(f"{file} is corrupt: its header {error}") from error
  begin, spans = 8 + length, []
  entries: dict[str, tuple[np.dtype, tuple[int, ...], int]] = {}
  for name in header.values:
    if name == "__metadata__":
      continue
    entry = header.section(name)
    stored, shape, offsets = entry.text("dtype"), entry.sequence("shape", int), entry.sequence("data_offsets", int)
    if stored not in DTYPES:
      raise UserError(f"{file}: the type {one_line(stored, 40)} of {one_line(name)} is not supported")
    if len(offsets) != 2 or min(shape, default=0) < 0 or len(shape) > 32:
      raise UserError(f"{file} is corrupt: {name} has the shape {shape} and the offsets {offsets}")
    if not 0 <= offsets[0] <= offsets[1] <= size - begin:
      raise UserError(f"{file} is corrupt: {name} lies outside the file, which is truncated or has a wrong header")
    dtype, span = np.dtype(DTYPES[stored]), offsets[1] - offsets[0]
    if span != math.prod(shape) * dtype.itemsize:
      raise UserError(f"{file} is corrupt: {name} has {span:,} bytes, which is not {shape} of {stored}")
    entries[name] = (dtype, tuple(shape), begin + offsets[0])
    spans.append((*offsets, name))
  end = 0
  for start, stop, name in sorted(spans):
    if start != end:
      raise UserError(
        f"{file} is corrupt: {name} starts at byte {start:,} of the data, and what is before it ends at {end:,}"
      )
    end = stop
  if end != size - begin:
    raise UserError(f"{file} is corrupt: it has {size - begin:,} bytes of data, and its header describes {end:,}")
  return entries


def unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
  """Returns a JSON object of its keys and values; raises ValueError if a key is there twice."""
  values = dict(pairs)
  if len(values) < len(pairs):
    twice = next(key for key, count in collections.Counter(key for key, _ in pairs).items() if count > 1)
    raise ValueError(f"{twice!r} is there twice")
  return values


def write(file: epath.Path, shapes: dict[str, tuple[np.dtype, tuple[int, ...]]], tensors: Iterable[np.ndarray]) -> None:
  """Writes a file, taking the tensors one at a time in the order of the shapes.

  Raises:
    UserError: the file cannot be written.
  """
  header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
  offset = 0
  for name, (dtype, shape) in shapes.items():
    size = math.prod(shape) * np.dtype(dtype).itemsize
    header[name] = {"dtype": NAMES[np.dtype(dtype)], "shape": list(shape), "data_offsets": [offset, offset + size]}
    offset += size
  text = json.dumps(header).encode()
  text += b" " * (-len(text) % 8)
  with files.replacing(file) as opened:
    opened.write(len(text).to_bytes(8, "little") + text)
    for (name, (dtype, shape)), tensor in zip(shapes.items(), tensors, strict=True):
      if tensor.shape != shape:
        raise ValueError(f"{name} has shape {list(tensor.shape)}, not {list(shape)}")
      opened.write(np.ascontiguousarray(tensor, dtype).tobytes())
