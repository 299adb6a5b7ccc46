"""What a folder may name: a stranger may have written it, and opening it never runs the stranger's code.

Strings read from a folder are `Foreign`. As a name, such a string stands for a class of lmjax that is what its place
asks for, or it is an error, before anything is imported. Links do not lead out of a folder. `trusting` lifts both. What
the user gives, a config or an option, is a plain string, which is not checked.
"""

import contextlib
import contextvars
import dataclasses
import inspect
import itertools
import os
import re
import types
import typing
from collections.abc import Iterator
from typing import Any

from lmjax.utils import names
from lmjax.utils.errors import UserError, one_line

PathLike = os.PathLike | str
ALL = "--trust"  # trusts every name and link
VARIABLE = "LMJAX_TRUST"  # of the environment: modules whose classes a folder may name, separated by commas
ADVICE = f"if you trust the folder, {ALL}, load(path, trust=True) or {VARIABLE}=module,... allows it"

# The modules that are trusted besides lmjax's own, or ALL, in this thread; a new thread starts with none.
_trusted: contextvars.ContextVar[frozenset[str]] = contextvars.ContextVar("trusted", default=frozenset())


class UntrustedError(UserError):
  """A folder names what only a trusted folder may name."""


class Foreign(str):
  """A string that was read from a folder."""

  file = "the folder"  # that it was read from


def trusted() -> frozenset[str]:
  """Returns the modules that are trusted here besides lmjax's own, or ALL."""
  return _trusted.get() | frozenset(os.environ.get(VARIABLE, "").split(","))


@contextlib.contextmanager
def trusting(*names: str) -> Iterator[None]:
  """Lets folders name classes of further modules, `module` or `module:Name`, or anything for ALL, inside a block."""
  token = _trusted.set(_trusted.get().union(name.partition(":")[0] for name in names))
  try:
    yield
  finally:
    _trusted.reset(token)


def named(value: Any) -> set[str]:
  """Returns the dotted names in plain data that the user gave."""
  if isinstance(value, dict | list | tuple):
    return set().union(*map(named, value.values() if isinstance(value, dict) else value))
  given = isinstance(value, str) and not isinstance(value, Foreign) and re.fullmatch(r"[\w.]+:\w+", value)
  return {value} if given else set()


def mark(value: Any, file: PathLike, given: set[str] | None = None, where: str = "config") -> Any:
  """Returns plain data that was read from a file of a folder, with its strings `Foreign`.

  Args:
    given: what the user names, too, and is not `Foreign`: the folder is only compared with it.

  Raises:
    UntrustedError: a `kind` names a module that is not trusted, and nothing is `given`.
  """
  if isinstance(value, dict):
    return {key: mark(item, file, given, f"{where}.{key}") for key, item in value.items()}
  if isinstance(value, list):
    return [mark(item, file, given, where) for item in value]
  if isinstance(value, str) and value not in (given or ()):
    value = Foreign(value)
    value.file = os.fspath(file)
    if given is None and where.endswith(".kind") and not _may_import(value.partition(":")[0]):
      raise _refusal(value, where)
  return value


def load(name: str, where: str, expected: Any) -> Any:
  """Returns the object of a dotted name.

  Args:
    where: the place that names it, for messages: `config.task.kind`.
    expected: what a `Foreign` name must stand for: a class or protocol, a kind of Callable, or None for nothing.

  Raises:
    ImportError, AttributeError: there is no such module, or no such name in it.
    UntrustedError: a folder names it, and it is not such a class of lmjax.
  """
  if not isinstance(name, Foreign) or ALL in trusted():
    return names.load(name)
  module = name.partition(":")[0]
  value = names.load(name) if _may_import(module) else None
  if getattr(value, "__module__", "") != module or not (module in trusted() or _fits(value, expected)):
    raise _refusal(name, where)
  return value


def _may_import(module: str) -> bool:
  return bool(module) and bool(re.fullmatch(r"lmjax(\.\w+)+", module) or trusted() & {module, ALL})


def _refusal(name: Foreign, where: str) -> UntrustedError:
  what = f"{name.file} names {one_line(repr(str(name)), 100)}, which is not what lmjax defines for this place"
  return UntrustedError(f"{where}: {what} and may be anyone's code; {ADVICE}")


def _fits(value: Any, expected: Any) -> bool:
  """Returns whether an object is what its place asks for: such a function, or a class with a base or a protocol."""
  if isinstance(value, types.FunctionType):
    hints = typing.get_type_hints(value)
    returned = hints.pop("return", None)
    return typing.get_args(expected) == (list(hints.values()), returned)
  # A config builds dataclasses and a tokenizer is loaded: not every class that happens to have the methods is meant.
  if not isinstance(value, type) or not (dataclasses.is_dataclass(value) or hasattr(value, "load")):
    return False
  if not getattr(expected, "_is_protocol", False):
    return isinstance(expected, type) and issubclass(value, expected)
  return all(hasattr(value, key) for key, item in vars(expected).items() if inspect.isfunction(item))


def check_links(folder: PathLike, *inside: str) -> None:
  """Checks the links in a folder, or those at and below some names in it.

  A link leads to a file inside the folder, or in the blobs/ of the Hugging Face cache whose snapshot the folder is.

  Raises:
    UntrustedError: a link leads elsewhere.
  """
  if ALL in trusted() or "://" in os.fspath(folder):
    return
  root = os.path.realpath(folder)
  repository, snapshot, _ = root.partition("/snapshots/")
  allowed = (f"{root}/", f"{repository if snapshot and '--' in os.path.basename(repository) else root}/blobs/")
  paths = [os.path.join(folder, name) for name in inside or ("",)]
  for at, folders, files in itertools.chain.from_iterable(map(os.walk, paths[:])):
    if inside or not at.startswith(os.path.join(folder, "wandb")):  # whose links lmjax does not follow
      paths += [os.path.join(at, name) for name in folders + files]
  for path in filter(os.path.islink, paths):
    target = os.path.realpath(path)
    if not os.path.isfile(target) or not target.startswith(allowed):
      raise UntrustedError(f"{path} is a link to {target}, which is not a file inside the folder; {ADVICE}")
