"""What the sources of files share: paths, and the content of files.

Files may be plain or gzipped, local or remote (`gs://...`). A plain local file is memory-mapped. A gzipped, cleaned or
remote file is read as a whole, and the last few are cached.
"""

import fnmatch
import glob
import mmap
from collections.abc import Callable, Sequence

from etils import epath

from lmjax.utils import names
from lmjax.utils.errors import UserError
from lmjax.utils.files import reading

CACHE: dict[tuple, bytes | mmap.mmap] = {}  # the content of the last files
Clean = Callable[[bytes], bytes]  # from the bytes of a file to the text in it, such as a book without its header


def expand_paths(files: str | Sequence[str]) -> list[epath.Path]:
  """Returns the files that paths and globs match; those of each are sorted.

  Raises:
    UserError: a path or glob matches nothing.
  """
  paths: list[epath.Path] = []
  for pattern in [files] if isinstance(files, str) else files:
    path = epath.Path(pattern).expanduser()
    if "://" not in pattern:  # no file has a NUL in its name
      matches = [epath.Path(p) for p in (() if "\0" in pattern else glob.glob(str(path), recursive=True))]
    elif glob.has_magic(path.name):  # in a remote path, only the file name may be a pattern
      matches = [p for p in path.parent.iterdir() if fnmatch.fnmatch(p.name, path.name)]
    else:
      matches = [path]
    matches = sorted(p for p in matches if p.exists() and not p.is_dir())
    if not matches:
      hint = "set your text with --config configs/text.py:files=my/*.txt"
      raise UserError(f"data: no file matches {pattern!r} (the current directory is {epath.Path().resolve()}); {hint}")
    paths += matches
  return paths


def read_bytes(path: epath.Path, clean: Clean | None = None, size: int | None = None) -> bytes | mmap.mmap:
  """Returns the content of a file, unzipped and cleaned.

  Args:
    size: bytes that it must have, since offsets in it are known; it may come from the cache then. Without it, the file
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
    if not clean and path.suffix != ".gz" and "://" not in str(path) and path.stat().length:
      with open(path, "rb") as file:
        return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    zipped = path.suffix == ".gz"
    data = names.load("lmjax.data.sources.gzipped:unzip")(path) if zipped else path.read_bytes()
  return clean(data) if clean else data
