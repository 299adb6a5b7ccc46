"""The header of a GGUF file, checked against the size of the file, and its tensors, mapped and read when indexed.

The gguf package has a reader too, but it takes every count in a corrupt file at its word.
"""

import functools
import importlib
import math
import re
import struct
from collections.abc import Callable
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np
from etils import epath

from lmjax.storage.lazy import mapped
from lmjax.utils.errors import UserError, one_line, reason
from lmjax.utils.files import reading

MAGIC, VERSIONS, ALIGNMENT = b"GGUF", (2, 3), 32
SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
STRING, ARRAY = 8, 9
MOST = 2**24  # metadata, tensors, and strings of an array: more than any vocabulary has
DTYPES = {"F32": np.float32, "F16": np.float16, "F64": np.float64, "BF16": ml_dtypes.bfloat16}
SHARD = re.compile(r"(.*)-(\d{5})-of-(\d{5})\.gguf")


@functools.cache
def package() -> Any:
  """Returns the gguf package.

  Raises:
    UserError: it is not installed.
  """
  try:
    return importlib.import_module("gguf")
  except ImportError as error:
    raise UserError("GGUF files need the package gguf: pip install 'lmjax[gguf]'") from error


class Tensor(NamedTuple):
  """Where a tensor lies: `kind` is the name of its type, `shape` has the rows first, as in numpy."""

  kind: str
  shape: tuple[int, ...]
  file: epath.Path
  offset: int
  bytes: int


class Deferred:
  """An array that is computed when its values are asked for; reshaping, transposing and slicing it computes nothing."""

  def __init__(self, make: Callable[[], np.ndarray], like: np.ndarray):
    self._make, self._like = make, like
    self.shape, self.ndim, self.dtype = like.shape, like.ndim, np.dtype(np.float32)

  @classmethod
  def of(cls, make: Callable[[], np.ndarray], shape: tuple[int, ...]) -> "Deferred":
    """Returns the array of a function and of the shape that it will have."""
    return cls(make, np.broadcast_to(np.empty((), np.bool_), shape))  # without memory of its own

  def __len__(self) -> int:
    return len(self._like)

  def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
    return np.asarray(self._make(), dtype or self.dtype)

  def __getitem__(self, index: Any) -> Any:
    parts = index if isinstance(index, tuple) else (index,)
    if all(isinstance(part, int | slice) for part in parts):
      return self._then(lambda array: array[index])
    return np.asarray(self._make()[index], self.dtype)

  def reshape(self, shape: tuple[int, ...]) -> "Deferred":
    """Returns the array in another shape."""
    return self._then(lambda array: array.reshape(shape))

  def transpose(self, axes: list[int]) -> "Deferred":
    """Returns the array with its axes in another order."""
    return self._then(lambda array: array.transpose(axes))

  def _then(self, change: Callable[[np.ndarray], np.ndarray]) -> "Deferred":
    return Deferred(lambda: change(self._make()), change(self._like))


class GGUF:
  """The metadata and the tensors of a model in one file, or in several that are numbered 00001-of-0000N.

  Raises:
    UserError: a file is missing, corrupt, truncated, big-endian, of an unknown version, or has tensors of a type that
      cannot be read.
  """

  def __init__(self, path: epath.PathLike):
    self.files = _shards(epath.Path(path))
    self.path = self.files[0]
    self.metadata: dict[str, Any] = {}
    self.tensors: dict[str, Tensor] = {}
    for number, file in enumerate(self.files):
      header = _read(file)
      count = header.metadata.get("split.count", 1)
      if count not in (0, len(self.files)):
        raise UserError(f"{file} is one of {count} files; keep all of them in one folder under their own names")
      if repeated := sorted(set(header.tensors) & set(self.tensors)):
        raise UserError(f"{file}: the tensor {one_line(repeated[0], 80)} is also in another file of the model")
      self.metadata = self.metadata if number else header.metadata
      self.tensors |= header.tensors
    for kind in sorted({tensor.kind for tensor in self.tensors.values()}):
      if not _is_readable(kind):
        name = next(name for name, tensor in self.tensors.items() if tensor.kind == kind)
        raise UserError(f"{self.path}: {name} is of the type {kind}, which the gguf package cannot turn into numbers")

  def array(self, name: str) -> Deferred:
    """Returns a tensor as float32 numbers, read when it is indexed."""
    tensor = self.tensors[name]
    return Deferred.of(functools.partial(_dequantize, tensor), tensor.shape)


def _shards(path: epath.Path) -> list[epath.Path]:
  """Returns the files of the model in a file or folder."""
  if path.is_dir():
    files = sorted(path.glob("*.gguf"))
    shards = {(match[1], match[3]) for file in files if (match := SHARD.fullmatch(file.name))}
    if len(files) != 1 and not (len(shards) == 1 and all(SHARD.fullmatch(file.name) for file in files)):
      names = ", ".join(file.name for file in files[:4])
      raise UserError(f"{path} holds {len(files)} GGUF files ({names}); name one of them")
    path = files[0]
  match = SHARD.fullmatch(path.name)
  if not match:
    return [path]
  files = [path.parent / f"{match[1]}-{number:05}-of-{match[3]}.gguf" for number in range(1, int(match[3]) + 1)]
  missing = [file.name for file in files if not file.exists()]
  if missing or not files:
    raise UserError(f"{path} is one of {int(match[3])} files, of which {', '.join(missing[:4])} are missing")
  return files


class _Header:
  """Takes the values of a header one after the other, never past the end of the file."""

  def __init__(self, file: epath.Path, data: memoryview):
    self.file, self._data, self._at = file, data, 0
    if self.take(4) != MAGIC:
      raise ValueError("it does not begin with GGUF")
    version = self.scalar(4)
    if version not in VERSIONS:
      swapped = int.from_bytes(version.to_bytes(4, "little"), "big") in VERSIONS
      raise ValueError("it is big-endian" if swapped else f"its version is {version:,}, not 2 or 3")
    tensors, keys = self._count(), self._count()
    self.metadata: dict[str, Any] = {}
    for _ in range(keys):
      key = self.string()
      if key in self.metadata:
        raise ValueError(f"the key {key} is there twice")
      self.metadata[key] = self.value(self.scalar(4))
    infos = [self._info() for _ in range(tensors)]
    alignment = self.metadata.get("general.alignment", ALIGNMENT)
    if not isinstance(alignment, int) or alignment < 1 or alignment & (alignment - 1):
      raise ValueError(f"general.alignment is {alignment}, not a power of two")
    start = -(-self._at // alignment) * alignment
    self.tensors: dict[str, Tensor] = {}
    for name, kind, shape, offset in infos:
      if name in self.tensors:
        raise ValueError(f"the tensor {name} is there twice")
      self.tensors[name] = self._locate(name, kind, shape, offset, start, alignment)

  def take(self, size: int) -> memoryview:
    """Returns the next so many bytes."""
    end = self._at + size
    if end > len(self._data):
      raise ValueError("it ends too early: it is truncated, or its header is wrong")
    taken, self._at = self._data[self._at : end], end
    return taken

  def scalar(self, kind: int) -> Any:
    """Returns the next number; a float32 as the shortest decimal number that it stands for."""
    code = SCALARS[kind]
    (value,) = struct.unpack("<" + code, self.take(struct.calcsize(code)))
    return float(str(np.float32(value))) if code == "f" else value

  def string(self) -> str:
    """Returns the next string."""
    return str(self.take(int.from_bytes(self.take(8), "little")), "utf-8")

  def value(self, kind: int) -> Any:
    """Returns the next value of metadata; an array of numbers as a numpy array, one of strings as a list."""
    if kind in SCALARS:
      return self.scalar(kind)
    if kind == STRING:
      return self.string()
    if kind != ARRAY:
      raise ValueError(f"it has metadata of the unknown type {kind}")
    item, count = self.scalar(4), self.scalar(10)
    if item == STRING:
      if count > MOST:
        raise ValueError(f"it has an array of {count:,} strings")
      return [self.string() for _ in range(count)]
    if item not in SCALARS:
      raise ValueError(f"it has an array of the type {item}")
    dtype = np.dtype(SCALARS[item]).newbyteorder("<")
    return np.frombuffer(self.take(count * dtype.itemsize), dtype)

  def _count(self) -> int:
    count = self.scalar(10)
    if count > MOST:
      raise ValueError(f"it has {count:,} entries")
    return count

  def _info(self) -> tuple[str, int, tuple[int, ...], int]:
    name, dimensions = self.string(), self.scalar(4)
    if dimensions > 4:
      raise ValueError(f"the tensor {name} has {dimensions:,} dimensions")
    shape = tuple(self.scalar(10) for _ in range(dimensions))[::-1]
    return name, self.scalar(4), shape, self.scalar(10)

  def _locate(self, name: str, kind: int, shape: tuple[int, ...], offset: int, start: int, alignment: int) -> Tensor:
    constants = package().constants
    if kind not in list(constants.GGMLQuantizationType):
      raise ValueError(f"the tensor {name} is of type {kind}, which the gguf package does not know; try a newer one")
    number = constants.GGMLQuantizationType(kind)
    block, size = constants.GGML_QUANT_SIZES[number]
    if not shape or min(shape) < 1 or shape[-1] % block:
      raise ValueError(f"the tensor {name} has the shape {list(shape)}, of which {number.name} needs rows of {block}n")
    length = math.prod(shape) // block * size
    if offset % alignment or start + offset + length > len(self._data):
      raise ValueError(f"the tensor {name} lies outside of it: it is truncated, or its header is wrong")
    return Tensor(number.name, shape, self.file, start + offset, length)


def _read(file: epath.Path) -> _Header:
  if not file.exists():
    raise UserError(f"{file} does not exist")
  try:
    with reading(file):
      return _Header(file, memoryview(np.memmap(file, np.uint8, "r")))
  except (ValueError, KeyError, struct.error, OverflowError) as error:
    text = "its text is not UTF-8" if isinstance(error, UnicodeError) else reason(error)
    raise UserError(f"{file} is not a GGUF file that can be read: {text}") from error


@functools.cache
def _is_readable(kind: str) -> bool:
  constants = package().constants
  if kind in DTYPES:
    return True
  number = constants.GGMLQuantizationType[kind]
  try:
    package().quants.dequantize(np.zeros((1, constants.GGML_QUANT_SIZES[number][1]), np.uint8), number)
  except NotImplementedError:
    return False
  return True


def _dequantize(tensor: Tensor) -> np.ndarray:
  if tensor.kind in DTYPES:
    return mapped(tensor.file, DTYPES[tensor.kind], tensor.offset, tensor.shape)
  rows = (*tensor.shape[:-1], tensor.bytes // math.prod(tensor.shape[:-1]))
  raw = mapped(tensor.file, np.uint8, tensor.offset, rows)
  with np.errstate(all="ignore"):  # a scale may be infinite, in a corrupt file
    return package().quants.dequantize(raw, package().constants.GGMLQuantizationType[tensor.kind])
