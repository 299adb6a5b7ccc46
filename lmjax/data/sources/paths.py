"""What the sources of files share: paths, and the content of files.

Files may be plain or gzipped, local or remote (`gs://...`). A plain local file is memory-mapped. A gzipped, cleaned or
remote file is read as a whole, and the last few are cached.
"""

import fnmatch
import glob
import mmap
import os
from collections.abc import Callable, Sequence

from etils import epath

from lmjax.utils import names
from lmjax.utils.errors import UserError
from lmjax.utils.files import expand, is_remote, reading

CACHE: dict[tuple, bytes | mmap.mmap] = {}  # the content of the last files
Clean = Callable[[bytes], bytes]  # from the bytes of a file to the text in it, such as a book without its header


def expand_paths(files: str | Sequence[str], suffixes: tuple[str, ...] = ("",)) -> list[epath.Path]:
  """Returns the files that paths, globs and folders stand for; those of each are sorted.

  A file or folder that is there is taken as it is called, whatever is in its name.

  Args:
    suffixes: of the files that a folder stands for, plain or gzipped.

  Raises:
    UserError: a path or glob matches nothing.
  """
  paths: list[epath.Path] = []
  for pattern in [files] if isinstance(files, str) else files:
    path = expand(pattern)
    if "\0" in pattern:  # no file has it in its name
      matches = []
    elif path.is_dir():
      matches = [file for file in path.iterdir() if file.name.lower().removesuffix(".gz").endswith(suffixes)]
      matches = [file for file in matches if file.name[0] != "."]
    elif path.exists():
      matches = [path]
    elif not is_remote(path):
      there = next(folder for folder in (path, *path.parents) if folder.exists())
      rest = os.path.relpath(path, there)
      matches = [expand(p) for p in glob.glob(os.path.join(glob.escape(str(there)), rest), recursive=True)]
    elif glob.has_magic(path.name):  # in a remote path, only the file name may be a pattern
      matches = [p for p in path.parent.iterdir() if fnmatch.fnmatch(p.name, path.name)]
    else:
      matches = []
    matches = sorted(p for p in matches if p.exists() and not p.is_dir())
    if not matches:
      hint = "set your text with --config 'configs/text.py:files=my/*.txt'"
      raise UserError(f"data: no file matches {pattern!r} (the current directory is {epath.Path().resolve()}); {hint}")
    paths += matches
  return paths


def read_bytes(path: epath.Path, clean: Clean | None = None, size: int | None = None) -> bytes | mmap.mmap:
  """Returns the content of a file, unzipped and cleaned.

  Args:
    size: bytes that it must have, as offsets in it are known; it may come from the cache then. Without it, the file
      is read as it is now.

  Raises:
    UserError: the file cannot be read, or has another size.
  """
  data = CACHE.pop((path, clean), None)
  shorter = isinstance(data, mmap.mmap) and data.size() < len(data)  # the kernel would kill who reads what is gone
  CACHE[path, clean] = data = _read_bytes(path, clean) if data is None or shorter or size is None else data
  for old in list(CACHE)[:-16]:
    CACHE.pop(old, None)
  if size not in (None, len(data)):
    raise UserError(f"{path} cannot be read: it had {size:,} bytes before, and now {len(data):,}; start again")
  return data


def _read_bytes(path: epath.Path, clean: Clean | None) -> bytes | mmap.mmap:
  with reading(path):
    if path.suffix.lower() == ".gz":
      data = names.load("lmjax.data.sources.gzipped:unzip")(path)
    elif clean or is_remote(path) or not path.stat().length:
      data = path.read_bytes()
    else:
      with open(path, "rb") as file:
        data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    if data[:2] in (b"\xff\xfe", b"\xfe\xff") or b"\0" in data[:1000]:  # not UTF-8, as almost all text is
      data = names.load("lmjax.data.sources.encodings:to_utf8")(data, path)
  return clean(data) if clean else data
