"""Objects by their dotted names, `package.module:Name`: imported when they are used, so a run imports only its own."""

import importlib
from typing import Any


def load(name: str) -> Any:
  """Returns the object of a dotted name.

  Raises:
    ImportError, AttributeError: there is no such module, or no such name in it.
  """
  module, _, attribute = name.partition(":")
  return getattr(importlib.import_module(module), attribute)


def current(name: str) -> str:
  """Returns what a dotted name is called now; the table of older names is loaded for one that lmjax does not have."""
  if not name.startswith("lmjax."):
    return name
  try:
    load(name)
  except (ImportError, AttributeError):
    return load("lmjax.utils.renames:dotted")(name)
  return name
