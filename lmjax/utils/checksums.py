"""Checksums of the files of a folder, kept in a file of it: XXH3-128 of every block of 16 MiB.

Blocks are read in parallel, and several hosts can share them. XXH3 is computed faster than memory is read; a change
goes unnoticed with a probability of 2^-128. It is not a signature. Older files have a CRC-32 of each block, a number.
"""

import concurrent.futures
import json
import zlib
from collections.abc import Callable, Collection

import xxhash
from etils import epath

from lmjax.utils.errors import UserError
from lmjax.utils.files import is_special, read_json, reading, write

NAME = "checksums.json"  # {"file:first byte of a block": checksum}
BLOCK, CHUNK = 2**24, 2**20  # bytes of a block, and of a read: a chunk stays in the processor's cache
THREADS = 8


def walk(folder: epath.Path, name: str = "") -> dict[str, epath.Path]:
  """Returns the files below a folder by their path names; epath has no recursive glob."""
  files: dict[str, epath.Path] = {}
  for path in folder.iterdir():
    files |= walk(path, f"{name}{path.name}/") if path.is_dir() else {name + path.name: path}
  return files


def save(folder: epath.Path, later: Collection[str] = ()) -> None:
  """Writes the checksums of the files of a folder; known ones are kept as they are.

  Args:
    later: files that are still going to change.
  """
  sums = read_json(folder / NAME) if (folder / NAME).exists() else {}
  new = {key: block for key, block in _blocks(folder).items() if key not in sums and key[:-2] not in later}
  sums |= _read(new)
  write(folder / NAME, json.dumps(sums, indent=0, sort_keys=True) + "\n")


def check(
  folder: epath.Path,
  later: Collection[str] = (),
  chosen: Callable[[str], bool] = lambda key: True,
  part: tuple[int, int] = (0, 1),
) -> int:
  """Compares the files of a folder, their sizes and contents with its checksums; returns the number of blocks read.

  Args:
    later: small files that may have no checksum yet.
    chosen: which blocks to read, by their keys in the file of checksums.
    part: (i, n): of these, every n-th block from the i-th on.

  Raises:
    UserError: something differs, which is named.
  """
  sums = read_json(folder / NAME)
  with reading(folder):
    blocks = _blocks(folder)
  differ = sorted((sums.keys() ^ blocks.keys()) - {f"{name}:0" for name in later if f"{name}:0" not in sums})
  if differ:
    raise UserError(f"{differ[0].rpartition(':')[0]} is missing, too much or has another size")
  read = {key: blocks[key] for key in sorted(filter(chosen, blocks.keys() & sums.keys()))[part[0] :: part[1]]}
  for key, checksum in _read(read, {key for key in read if isinstance(sums[key], int)}).items():
    if checksum != sums[key]:
      raise UserError(f"{key.rpartition(':')[0]} has changed")
  return len(read)


def _blocks(folder: epath.Path) -> dict[str, tuple[epath.Path, int]]:
  """Returns the blocks of the files of a folder; a kill may leave an unfinished file of checksums, which is not one."""
  files = {name: path for name, path in walk(folder).items() if not name.startswith(NAME) and not is_special(path)}
  starts = {name: range(0, max(path.stat().length, 1), BLOCK) for name, path in files.items()}
  return {f"{name}:{start}": (files[name], start) for name in files for start in starts[name]}


def _read(blocks: dict[str, tuple[epath.Path, int]], older: Collection[str] = ()) -> dict[str, str | int]:
  """Returns the checksums of blocks; CRC-32 of the older ones."""
  with concurrent.futures.ThreadPoolExecutor(THREADS) as pool:
    return dict(zip(blocks, pool.map(lambda key: _checksum(*blocks[key], key in older), blocks), strict=True))


def _checksum(path: epath.Path, start: int, older: bool) -> str | int:
  crc, left, buffer, xxh3 = 0, BLOCK, memoryview(bytearray(CHUNK)), xxhash.xxh3_128()
  with reading(path), path.open("rb") as file:
    file.seek(start)
    while left and (count := file.readinto(buffer[: min(left, CHUNK)])):
      left -= count
      if older:
        crc = zlib.crc32(buffer[:count], crc)
      else:
        xxh3.update(buffer[:count])
  return crc if older else xxh3.hexdigest()
