"""Folders of safetensors: headers read and checked, tensors mapped, and written, one at a time."""

import json
import math
from collections.abc import Iterable

import ml_dtypes
import numpy as np
from etils import epath

from lmjax.utils.errors import UserError

DTYPES = {
  "F64": np.float64, "F32": np.float32, "F16": np.float16, "BF16": ml_dtypes.bfloat16, "I64": np.int64, "I32": np.int32,
  "I16": np.int16, "I8": np.int8, "U8": np.uint8, "BOOL": np.bool_,
}  # fmt: skip
NAMES = {np.dtype(dtype): name for name, dtype in DTYPES.items()}
LARGEST_HEADER = 100 * 2**20  # bytes, as the format has it


class Tensors:
  """The tensors of a folder by name; opening reads headers only."""

  def __init__(self, folder: epath.PathLike):
    self.folder = epath.Path(folder)
    self._where: dict[str, tuple[epath.Path, np.dtype, tuple[int, ...], int]] = {}
    for file in self._files():
      for name, place in _header(file).items():
        if name in self._where:
          raise UserError(f"{file}: {name} is also in {self._where[name][0].name}")
        self._where[name] = (file, *place)

  def _files(self) -> list[epath.Path]:
    index, single = self.folder / "model.safetensors.index.json", self.folder / "model.safetensors"
    if index.exists():
      return shards(index)
    if single.exists():
      return [single]
    pickled = [p.name for p in self.folder.iterdir() if p.suffix in (".bin", ".pt", ".pth", ".ckpt")]
    if pickled:
      raise UserError(
        f"{self.folder / pickled[0]} is pickled, and opening a pickle can run any program; load it with transformers "
        "once and save it again: model.save_pretrained(folder), which writes safetensors"
      )
    raise UserError(f"{self.folder} holds no model.safetensors")

  def __iter__(self):
    return iter(self._where)

  def __contains__(self, name: str) -> bool:
    return name in self._where

  def shape(self, name: str) -> tuple[int, ...]:
    """Returns the shape of a tensor, from the header."""
    return self._where[name][2]

  def dtype(self, name: str) -> np.dtype:
    """Returns the type of a tensor, from the header."""
    return self._where[name][1]

  def __getitem__(self, name: str) -> np.ndarray:
    """Returns a tensor, mapped and not read."""
    file, dtype, shape, offset = self._where[name]
    if not math.prod(shape):
      return np.zeros(shape, dtype)
    return np.memmap(file, dtype, "r", offset, shape)


def shards(index: epath.Path) -> list[epath.Path]:
  """Returns the files that an index names.

  Raises:
    UserError: it cannot be read, points outside its folder, or names a file that is not there.
  """
  try:
    names = sorted(set(json.loads(index.read_text())["weight_map"].values()))
  except (ValueError, KeyError, AttributeError, TypeError) as error:
    raise UserError(f"{index} is damaged: {error}") from error
  for name in names:
    if "/" in name or "\\" in name or name.startswith("."):
      raise UserError(f"{index} points outside its folder: {name!r}")
    if not (index.parent / name).exists():
      raise UserError(f"{index} names {name}, which is not there")
  return [index.parent / name for name in names]


def _header(file: epath.Path) -> dict[str, tuple[np.dtype, tuple[int, ...], int]]:
  """Returns type, shape and offset of each tensor of a file.

  Raises:
    UserError: the file is cut, or its header does not say the truth about it.
  """
  size = file.stat().length
  with file.open("rb") as opened:
    length = int.from_bytes(opened.read(8), "little")
    if size < 8 or length > min(size - 8, LARGEST_HEADER):
      raise UserError(f"{file} is damaged: it has {size:,} bytes and a header of {length:,}")
    try:
      header = json.loads(opened.read(length))
      header.pop("__metadata__", None)
      found = {}
      for name, entry in header.items():
        start, end = entry["data_offsets"]
        dtype, shape = np.dtype(DTYPES[entry["dtype"]]), tuple(entry["shape"])
        if not 0 <= start <= end <= size - 8 - length or min(shape, default=0) < 0:
          raise ValueError(f"{name} lies outside the file, which is cut or not what its header says")
        if end - start != math.prod(shape) * dtype.itemsize:
          raise ValueError(f"{name} has {end - start:,} bytes, and {list(shape)} of {entry['dtype']} do not")
        found[name] = (dtype, shape, 8 + length + start)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
      raise UserError(f"{file} is damaged: {error}") from error
  return found


def write(file: epath.Path, shapes: dict[str, tuple[np.dtype, tuple[int, ...]]], tensors: Iterable[np.ndarray]) -> None:
  """Writes a file, taking the tensors one at a time in the order of the shapes."""
  header, at = {"__metadata__": {"format": "pt"}}, 0
  for name, (dtype, shape) in shapes.items():
    size = math.prod(shape) * np.dtype(dtype).itemsize
    header[name] = {"dtype": NAMES[np.dtype(dtype)], "shape": list(shape), "data_offsets": [at, at + size]}
    at += size
  text = json.dumps(header).encode()
  text += b" " * (-len(text) % 8)
  with file.open("wb") as opened:
    opened.write(len(text).to_bytes(8, "little") + text)
    for (name, (dtype, shape)), tensor in zip(shapes.items(), tensors, strict=True):
      if tensor.shape != shape:
        raise ValueError(f"{name} has shape {list(tensor.shape)}, not {list(shape)}")
      opened.write(np.ascontiguousarray(tensor, dtype).tobytes())
