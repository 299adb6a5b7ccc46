"""Small files: written whole or not at all, and JSON that is read as what it should be."""

import contextlib
import json
import os
import re
from collections.abc import Iterator
from typing import IO, Any

from etils import epath

from lmjax.utils import trust
from lmjax.utils.errors import UserError, one_line, reason


@contextlib.contextmanager
def replacing(path: epath.PathLike) -> Iterator[IO[bytes]]:
  """Yields a stream whose content takes the place of a file when the block ends without an error.

  Until then, and after an error or a kill, the file is as it was before. What is not a regular file, such as
  /dev/stdout, is written directly; so is a file of an object store, which appears when it is complete.

  Raises:
    UserError: the file cannot be written.
  """
  path = epath.Path(path).expanduser()
  try:
    if is_remote(path) or _is_special(path):
      with path.open("wb") as stream:
        yield stream
      return
    target = epath.Path(os.path.realpath(path))  # a link stays a link
    part = target.with_name(target.name[:200] + ".part")
    try:
      with part.open("wb") as stream:
        yield stream
        stream.flush()
        os.fsync(stream.fileno())
      os.replace(part, target)
    finally:
      with contextlib.suppress(OSError):
        part.unlink(missing_ok=True)
    _sync_folder(target.parent)
  except OSError as error:
    raise UserError(f"{path} could not be written: {reason(error)}") from error


def write(path: epath.PathLike, content: str | bytes) -> None:
  """Writes a file as `replacing` does; a file that has this content already is left alone.

  Raises:
    UserError: the file cannot be written.
  """
  data = content.encode() if isinstance(content, str) else content
  path = epath.Path(path).expanduser()
  with contextlib.suppress(OSError):
    if os.path.isfile(path) and path.stat().length == len(data) and path.read_bytes() == data:
      return
  with replacing(path) as stream:
    stream.write(data)


def read_json(file: epath.PathLike, kind: type = dict) -> Any:
  """Returns the value in a JSON file.

  Args:
    kind: of the value: dict, or list.

  Raises:
    UserError: the file cannot be read, is not JSON, or holds a value of another kind.
  """
  file = epath.Path(file)
  try:
    value = json.loads(file.read_bytes().decode("utf-8-sig"))
    json.dumps(value, ensure_ascii=False).encode()  # half a surrogate pair is valid JSON and no text
  except json.JSONDecodeError as error:
    raise UserError(f"{file}:{error.lineno}: is not JSON: {error.msg}") from error
  except UnicodeError as error:
    raise UserError(f"{file} is not JSON: its text is not UTF-8") from error
  except RecursionError as error:
    raise UserError(f"{file} is not JSON that can be read: it is nested too deeply") from error
  except (OSError, ValueError) as error:  # a number of thousands of digits is a ValueError
    raise UserError(f"{file} cannot be read: {reason(error)}") from error
  if not isinstance(value, kind):
    raise UserError(f"{file} holds {type(value).__name__}, not {kind.__name__}")
  return value


def inside(folder: epath.PathLike, name: Any) -> epath.Path:
  """Returns the path of a file of a folder that another of its files names.

  Raises:
    UserError: the name is not a string, or it or a link leads out of the folder.
  """
  if not isinstance(name, str) or re.search(r"^[/~]|^\w+:|(^|/)\.\.(/|$)|[\\\0]", name):
    raise UserError(f"{folder} names the file {one_line(repr(name), 100)}, which is not a path inside of it")
  trust.check_links(folder, name)
  return epath.Path(folder) / name


def is_remote(path: epath.PathLike) -> bool:
  """Returns whether a path lies in an object store, `gs://bucket/folder`."""
  return "://" in os.fspath(path)


def _is_special(path: epath.Path) -> bool:
  """Returns whether a local path is there and neither a file nor a folder; epath takes a device for a file."""
  return os.path.exists(path) and not (os.path.isfile(path) or os.path.isdir(path))


def _sync_folder(folder: epath.Path) -> None:
  """Makes a rename survive a power failure, where the file system can do that."""
  with contextlib.suppress(OSError):
    descriptor = os.open(folder, os.O_RDONLY)
    try:
      os.fsync(descriptor)
    finally:
      os.close(descriptor)
