"""The values of a JSON object, of which each is checked when it is taken."""

import math
import sys
from collections.abc import Sequence
from typing import Any

from lmjax.utils.errors import UserError, did_you_mean, one_line

REQUIRED: Any = object()  # the default of a key that must be there
LARGEST, LARGEST_FLOAT = 2**31 - 1, sys.float_info.max


class Fields:
  """A JSON object whose values are taken by their type and range; it knows which keys nobody took.

  A key that is missing, or null, has the default; without a default it is an error that names the key and the file.

  Args:
    values: the object.
    where: the file, for messages; empty where `parent` says enough, `config.`.
    parent: the keys above this object, `text_config.`.
  """

  def __init__(self, values: dict[str, Any], where: object, parent: str = ""):
    self.values, self.where, self._parent = values, where, parent
    self._at = f"{where}: {parent}" if where else parent
    self.taken: set[str] = set()

  def __contains__(self, key: str) -> bool:
    return self.values.get(key) is not None

  def get(self, key: str, default: Any = REQUIRED) -> Any:
    """Returns a value as it is."""
    self.taken.add(key)
    value = self.values.get(key)
    if value is None:
      if default is REQUIRED:
        raise UserError(f"{self._at}{key} is missing")
      return default
    return value

  def integer(self, key: str, default: Any = REQUIRED, least: int = 0, most: int = LARGEST) -> Any:
    """Returns a whole number between `least` and `most`, or the default."""
    value = self.get(key, default)
    if key in self and (isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most):
      raise self.wrong(key, f"a whole number from {least:,} to {most:,}")
    return value

  def number(self, key: str, default: Any = REQUIRED, least: float = -math.inf, most: float = math.inf) -> Any:
    """Returns a finite number between `least` and `most`, or the default."""
    value = self.get(key, default)
    if key not in self:
      return value
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) <= LARGEST_FLOAT:
      raise self.wrong(key, "a finite number")
    if not least <= value <= most:
      raise self.wrong(key, f"a number from {least:g} to {most:g}")
    return float(value)

  def boolean(self, key: str, default: Any = REQUIRED) -> Any:
    """Returns true or false, or the default."""
    value = self.get(key, default)
    if key in self and not isinstance(value, bool):
      raise self.wrong(key, "true or false")
    return value

  def text(self, key: str, default: Any = REQUIRED, choices: Sequence[str] = ()) -> Any:
    """Returns a string, one of the choices where there are any, or the default."""
    value = self.get(key, default)
    if key in self and not isinstance(value, str):
      raise self.wrong(key, "a string")
    if key in self and choices and value not in choices:
      raise UserError(f"{self._at}{key} {value!r} is not supported{did_you_mean(value, choices)}")
    return value

  def sequence(self, key: str, kind: type | tuple[type, ...], default: Any = REQUIRED) -> Any:
    """Returns a list of values of a kind, or the default."""
    value = self.get(key, default)
    if key in self:
      kinds = kind if isinstance(kind, tuple) else (kind,)
      whole = isinstance(value, list) and all(isinstance(item, kinds) for item in value)
      if not whole or (bool not in kinds and any(isinstance(item, bool) for item in value)):
        raise self.wrong(key, f"a list of {' or '.join(k.__name__ for k in kinds)}")
    return value

  def section(self, key: str, default: Any = REQUIRED) -> "Fields":
    """Returns an object inside this one; the default is a dict."""
    value = self.get(key, default)
    if not isinstance(value, dict):
      raise self.wrong(key, "an object")
    return Fields(value, self.where, f"{self._parent}{key}.")

  def unused(self) -> list[str]:
    """Returns the keys that nobody took."""
    return [key for key in self.values if key not in self.taken]

  def wrong(self, key: str, expected: str) -> UserError:
    """Returns the error for a value that is not what it must be."""
    value = one_line(repr(self.values.get(key)), 60)
    return UserError(f"{self._at}{key} must be {expected}, not {value}")
