"""Small files: written whole or not at all, and JSON that is read as what it should be."""

import contextlib
import errno
import glob
import json
import os
import pathlib
import re
import shutil
import stat
from collections.abc import Callable, Iterator
from typing import IO, Any

from etils import epath

from lmjax.utils import names, trust
from lmjax.utils.errors import UserError, one_line, reason

DEEPEST = 60  # objects and lists inside of each other
SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")  # half a pair, escaped


class LocalPath(type(epath.Path("/"))):  # type: ignore[misc]  # epath has no public name for it
  """A local path, whose own characters are never read as a pattern: epath and Orbax do not escape them."""

  def glob(self, pattern: str) -> Iterator["LocalPath"]:
    return map(self._new, glob.glob(os.path.join(glob.escape(os.fspath(self)), pattern)))


def expand(path: epath.PathLike) -> epath.Path:
  """Returns a path as a person gives it, with ~ expanded: every path of an option, a config or a call goes through."""
  if is_hub(path):
    raise UserError(f"{path} is a model on the Hugging Face Hub, which cannot be here; lmjax convert --push writes one")
  if "\0" in os.fspath(path):
    raise UserError(f"{os.fspath(path)!r} has a null character, which no path can have")
  return epath.Path(path) if is_remote(path) else LocalPath(os.path.expanduser(path))


def find(path: epath.PathLike, weights: bool = True) -> epath.Path:
  """Returns the path of a saved model or a tokenizer, which is downloaded if it is called hf:owner/name.

  Raises:
    UserError: it could not be downloaded.
  """
  return LocalPath(names.load("lmjax.utils.hub:download")(os.fspath(path), weights)) if is_hub(path) else expand(path)


@contextlib.contextmanager
def writing(path: epath.PathLike, problem: str = "could not be written") -> Iterator[None]:
  """Raises UserError, which names the path, for an OSError in its block."""
  try:
    yield
  except OSError as error:
    raise UserError(f"{path} {problem}: {reason(error)}") from error


@contextlib.contextmanager
def reading(path: epath.PathLike) -> Iterator[None]:
  """Raises UserError, which names the path, for an OSError in its block.

  It does so before the block where there is no regular file: a pipe would be waited for, a device has no end.
  """
  with writing(path, "cannot be read"):
    if is_special(path):
      raise OSError(errno.EINVAL, "it is not a regular file")
    yield


@contextlib.contextmanager
def replacing(path: epath.PathLike) -> Iterator[IO[bytes]]:
  """Yields a stream whose content takes the place of a file when the block ends without an error.

  Until then, and after an error or a kill, the file is as it was before. What is not a regular file, such as
  /dev/stdout, is written directly; so is a file of an object store, which appears when it is complete.

  Raises:
    UserError: the file cannot be written.
  """
  path = expand(path)
  with writing(path):
    if is_remote(path) or is_special(path):
      with path.open("wb") as stream:
        yield stream
      return
    target = epath.Path(os.path.realpath(path))  # a link stays a link
    _check_place(target, folder=False)
    part = part_of(target)
    try:
      part.unlink(missing_ok=True)  # a file that a kill left, or a link to somewhere else
      with open(part, "xb") as stream:
        yield stream
        stream.flush()
        os.fsync(stream.fileno())
      os.replace(part, target)
    finally:
      with contextlib.suppress(OSError):
        part.unlink(missing_ok=True)
    _sync_folder(target.parent)


@contextlib.contextmanager
def new_folder(folder: epath.PathLike) -> Iterator[epath.Path]:
  """Yields an empty folder, whose files appear in `folder` when the block ends without an error, and else never do.

  A folder that exists keeps its other files. One of an object store is yielded itself.

  Raises:
    UserError: the folder cannot be written.
  """
  folder = expand(folder)
  if is_remote(folder):
    yield folder
    return
  with writing(folder):
    folder = expand(os.path.realpath(folder))
    part = part_of(folder)
    _check_place(folder, folder=True)
    folder.parent.mkdir(parents=True, exist_ok=True)
    try:
      _remove(part)
      part.mkdir()
      yield part
      with contextlib.suppress(OSError):  # there is such a folder, which is not empty
        os.replace(part, folder)
      for file in sorted(pathlib.Path(part).rglob("*")):  # of a folder that is there already
        target = folder / file.relative_to(part)
        target.mkdir(exist_ok=True) if file.is_dir() else os.replace(file, target)
    finally:
      _remove(part)
    _sync_folder(folder.parent)


def part_of(path: epath.PathLike) -> epath.Path:
  """Returns where a file or folder is written until it is complete: beside its place, under a hidden name."""
  path = epath.Path(path)
  return path if is_remote(path) else path.with_name(f".{os.fsdecode(os.fsencode(path.name)[:200])}.part")


def make_folder(folder: epath.PathLike) -> None:
  """Creates a folder and those above it, where they are not there.

  Raises:
    UserError: it cannot be created.
  """
  with writing(folder):
    expand(folder).mkdir(parents=True, exist_ok=True)


def write(path: epath.PathLike, content: str | bytes) -> None:
  """Writes a file as `replacing` does; a file that has this content already is left alone.

  Raises:
    UserError: the file cannot be written.
  """
  data = content.encode() if isinstance(content, str) else content
  path = expand(path)
  with contextlib.suppress(OSError):
    if os.path.isfile(path) and path.stat().length == len(data) and path.read_bytes() == data:
      return
  with replacing(path) as stream:
    stream.write(data)


def append(path: epath.PathLike, text: str) -> None:
  """Adds lines to the end of a file, all or none.

  Raises:
    UserError: the file cannot be written.
  """
  path, data = expand(path), memoryview(text.encode())
  with writing(path):
    if is_remote(path):
      with path.open("ab") as stream:
        stream.write(data)
      return
    with open(path, "ab", buffering=0) as raw:
      before = raw.seek(0, os.SEEK_END)
      try:
        while data:
          data = data[raw.write(data) :]
      except OSError:
        raw.truncate(before)
        raise


def read_bytes(file: epath.PathLike) -> bytes:
  """Returns what is in a file.

  Raises:
    UserError: the file cannot be read.
  """
  file = expand(file)
  with reading(file):
    return file.read_bytes()


def read_text(file: epath.PathLike) -> str:
  """Returns the text of a file.

  Raises:
    UserError: the file cannot be read, or is not UTF-8.
  """
  try:
    return read_bytes(file).decode("utf-8-sig")
  except UnicodeError as error:
    raise UserError(f"{file} cannot be read: its text is not UTF-8") from error


def read_json(file: epath.PathLike, kind: type = dict) -> Any:
  """Returns the value in a JSON file.

  Args:
    kind: of the value: dict, or list.

  Raises:
    UserError: the file cannot be read, is not JSON, or holds a value of another kind.
  """
  data = read_bytes(file)
  try:
    return parse_json(data, kind)
  except ValueError as error:
    raise UserError(f"{file} {error}") from error


def parse_json(text: str | bytes, kind: type = dict, make: Callable[[list[tuple[str, Any]]], Any] | None = None) -> Any:
  """Returns the value that JSON describes.

  Args:
    kind: of the value: dict, or list.
    make: returns an object of its keys and values, or raises ValueError; by default a dict, whatever its keys.

  Raises:
    ValueError: why the text cannot be read, as it continues "FILE ...".
  """
  try:
    text = text.decode("utf-8-sig") if isinstance(text, bytes) else text
    value = json.loads(text, object_pairs_hook=make)
    if text.count("[") + text.count("{") > DEEPEST:
      _check_depth(value)
    if SURROGATE.search(text):  # half a surrogate pair is valid JSON and no text
      json.dumps(value, ensure_ascii=False).encode()
  except json.JSONDecodeError as error:
    raise ValueError(f"is not JSON: {error.msg} in line {error.lineno}") from error
  except UnicodeError as error:
    raise ValueError("is not JSON: its text is not UTF-8") from error
  except RecursionError as error:
    raise ValueError("is not JSON that can be read: it is nested too deeply") from error
  except ValueError as error:  # a number of thousands of digits
    raise ValueError(f"is not JSON that can be read: {reason(error)}") from error
  if not isinstance(value, kind):
    raise ValueError(f"is a JSON {type(value).__name__}, not {'an object' if kind is dict else 'a list'}")
  return value


def _check_depth(value: Any) -> None:
  level = [value]
  for _ in range(DEEPEST + 1):
    nested = [item for item in level if isinstance(item, dict | list)]
    level = [v for item in nested for v in (item.values() if isinstance(item, dict) else item)]
  if level:
    raise RecursionError


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


def absolute(path: str) -> str:
  """Returns a path that names the same saved model from everywhere: with the commit, where it is on the Hub."""
  if is_hub(path):
    return names.load("lmjax.utils.hub:resolved")(path, os.fspath(find(path)))
  return path if is_remote(path) else os.fspath(expand(path).absolute())


def is_hub(path: epath.PathLike) -> bool:
  """Returns whether a path is a name on the Hugging Face Hub, hf:owner/name; a local file comes first."""
  return os.fspath(path).startswith("hf:") and not os.path.lexists(path)


def is_special(path: epath.PathLike) -> bool:
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


def _check_place(path: epath.Path, folder: bool) -> None:
  """Raises OSError where a file or folder cannot be, which a rename would find after all the work."""
  with contextlib.suppress(FileNotFoundError):
    if stat.S_ISDIR(os.stat(path).st_mode) != folder:
      raise OSError(errno.EEXIST, f"a {'file' if folder else 'folder'} is in the way")


def _remove(path: epath.Path) -> None:
  """Removes a folder with all in it, or what is in its place."""
  is_folder = os.path.isdir(path) and not os.path.islink(path)
  shutil.rmtree(path) if is_folder else path.unlink(missing_ok=True)
