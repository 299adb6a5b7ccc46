"""The sections of a config: plain data, each leaf of which is consumed by exactly one strict constructor.

A part that names a class, `kind = "lmjax.tasks.causal_lm:CausalLM"`, is built by `build`, which takes the valid keys
from the class itself. `config` reads config files.
"""

import collections.abc
import copy
import dataclasses
import inspect
import math
import os
import re
import sys
import types
import typing
from typing import Any

from flax import linen as nn

from lmjax.utils import names, trust
from lmjax.utils.errors import UserError, did_you_mean

FORMAT = 3  # of config.json; the first had no number

# The sections of a config; those with a default may be left out.
KEYS: dict[str, Any] = {
  "seed": 0,
  "steps": None,
  "batch": None,
  "mesh": {},
  "rules": "ddp",
  "start": {},
  "data": None,
  "model": None,
  "task": None,
  "optim": {},
  "transform": {"kind": "lmjax.compression.base:Identity"},
  "evals": {},
  "checkpoint": {},
  "log": {},
}


def upgrade(config: dict[str, Any], where: str, edited: bool = False) -> dict[str, Any]:
  """Returns the plain data of a config in the names of this version, with all sections and without its format number.

  Args:
    edited: keys of it were set after it was written, in the names of any version.

  Raises:
    UserError: a newer format than this version knows, an unknown or a missing section.
  """
  version = config.get("format", 1)
  if type(version) is not int or not 0 < version <= FORMAT:
    raise UserError(f"{where} has format {version!r}, this lmjax reads up to {FORMAT}: install a newer lmjax")
  config = {key: value for key, value in config.items() if key != "format"}
  # The table of older names is loaded, as a format of saved models is, only for what may have them: an older config, or
  # one that a person wrote, which has no number. The runs of this version do not import it.
  if version < FORMAT or edited:
    config = names.load("lmjax.utils.renames:config")(config)
  for key in config:
    if key not in KEYS:
      raise UserError(f"config.{key}: no such key{did_you_mean(key, KEYS)}")
  config = with_defaults(config)
  for key, value in config.items():
    if value is None:
      raise UserError(f"config.{key} is missing from {where}")
    if key not in ("seed", "steps", "batch", "rules") and not isinstance(value, dict):
      raise UserError(f"config.{key} is a section with keys of its own, not {value!r}")
  return config


def with_defaults(config: dict[str, Any]) -> dict[str, Any]:
  """Returns a config with the sections that it leaves out, in the usual order."""
  return {key: config.get(key, copy.deepcopy(default)) for key, default in KEYS.items()} | config


def resolve(name: str, where: str, expected: Any = object) -> Any:
  """Returns the object of a dotted name `package.module:Name`.

  Args:
    expected: what the name of a folder that is not trusted must stand for, see `trust.load`.

  Raises:
    UserError: no such module, no such name in it, or one that a folder may not name.
  """
  if not isinstance(name, str) or not re.fullmatch(r"[\w.]*\w:\w+", name):
    raise UserError(f"config.{where}: {name!r} is not of the form package.module:Name")
  current = name if isinstance(name, trust.Foreign) else names.current(name)  # load_config has renamed these
  module_name, _, attribute = current.partition(":")
  try:
    return trust.load(current, f"config.{where}", expected)
  except ImportError as error:
    raise UserError(f"config.{where}: cannot import {module_name!r}: {error}") from error
  except AttributeError as error:
    if error.name != attribute:  # of the module's own code
      raise
    members = vars(sys.modules[module_name]).items()
    known = [name for name, value in members if getattr(value, "__module__", "") == module_name]
    raise UserError(f"config.{where}: {module_name} has no {attribute!r}{did_you_mean(attribute, known)}") from error


def build(spec: dict[str, Any], where: str, cls: type | None = None, base: type | None = None, **shared: Any) -> Any:
  """Returns the object that a section of a config describes.

  Args:
    spec: the keys of the constructor, and `kind`, its dotted name, unless `cls` is given.
    where: the name of the section, for messages: `optim`, `data.source`.
    cls: the class, where the section decides it.
    base: what the class is derived from, or its protocol; a folder that is not trusted names no other.
    shared: values that several sections need (vocabulary, length, model).

  Raises:
    UserError: an unknown or missing key, a value of the wrong type, or one the constructor refuses.
  """
  if not isinstance(spec, dict):
    raise UserError(f"config.{where} is a section with keys of its own, not {spec!r}")
  spec = dict(spec)
  if "kind" in spec:
    cls = resolve(spec.pop("kind"), f"{where}.kind", cls or base)
  elif cls is None:
    raise UserError(f"config.{where}.kind is missing: the dotted name of a class, package.module:Name")
  hints = typing.get_type_hints(cls)
  module = isinstance(cls, type) and issubclass(cls, nn.Module)
  if cls is base or (base is nn.Module and "config" not in hints):
    raise UserError(f"config.{where}.kind: {cls.__name__} is not what a config can name here")
  if module and "config" in hints:  # a model is a Linen module around its Config
    return cls(build(spec, where, hints["config"], **shared))
  fields = dict(inspect.signature(cls).parameters)  # of a class or of a function that returns an object of one
  if module:  # a head: Linen's own fields are not set by a config
    fields.pop("name")
    shared = shared | {"parent": None}
  for key in spec:
    if key not in fields or key in shared:
      owner = "; another section sets it" if key in shared else did_you_mean(key, set(fields) - set(shared))
      raise UserError(f"config.{where}.{key}: no such key{owner}")
  values = {key: value for key, value in shared.items() if key in fields}
  for key, value in spec.items():
    hint, name = hints.get(key, Any), f"{where}.{key}"
    # A task in a task gets what the outer one gets.
    values[key] = build(value, name, None, base, **shared) if hint is base else _value(value, hint, name)
    own = cls.__module__.startswith("lmjax.") and key not in getattr(cls, "negative", ())  # a user's class may want it
    several = values[key].values() if isinstance(values[key], dict) else values[key]
    numbers = several if isinstance(values[key], dict | tuple) else [several]
    if own and any(isinstance(number, int | float) and number < 0 for number in numbers):
      raise UserError(f"config.{where}.{key} must be at least 0, not {values[key]}")
  for key, field in fields.items():
    if key not in values and field.default is inspect.Parameter.empty:
      raise UserError(f"config.{where}.{key} is missing")
  try:
    return cls(**values)
  except ValueError as error:
    raise UserError(f"config.{where}: {error}") from error


def complete(spec: Any, where: str, cls: type | None = None) -> Any:
  """Returns a section of a config with the defaults of its constructor, so that two configs can be compared.

  Args:
    cls: the class, where the section decides it; else its `kind` does.
  """
  if not isinstance(spec, dict):
    return spec
  values: dict[str, Any] = {}
  if "kind" in spec:
    try:
      cls = resolve(spec["kind"], f"{where}.kind")
    except trust.UntrustedError:  # the other config does not name it
      return spec
    values["kind"] = names.current(spec["kind"])
  hints = typing.get_type_hints(cls)
  if isinstance(cls, type) and issubclass(cls, nn.Module) and "config" in hints:
    cls, hints = hints["config"], typing.get_type_hints(hints["config"])
  for key, field in inspect.signature(cls).parameters.items():
    if key in spec or field.default is not inspect.Parameter.empty:
      values[key] = _plain(spec.get(key, field.default), hints.get(key), f"{where}.{key}")
  return values | {key: value for key, value in spec.items() if key not in values}


def _plain(value: Any, hint: Any, where: str) -> Any:
  """Returns a value of a config, or a default of a constructor, as plain data."""
  if dataclasses.is_dataclass(value):
    kind = {} if type(value) is hint else {"kind": f"{type(value).__module__}:{type(value).__qualname__}"}
    fields = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    return complete(kind | fields, where, type(value))
  if isinstance(value, dict) and ("kind" in value or dataclasses.is_dataclass(hint)):
    return complete(value, where, hint)
  if isinstance(value, dict):
    return {str(key): _plain(item, None, where) for key, item in value.items()}
  return [_plain(item, None, where) for item in value] if isinstance(value, list | tuple) else value


def _value(value: Any, hint: Any, where: str) -> Any:
  """Returns a leaf as its field wants it, or raises UserError."""
  origin, arguments = typing.get_origin(hint), typing.get_args(hint)
  if origin in (typing.Union, types.UnionType):
    if value is None and type(None) in arguments:
      return None
    options = [a for a in arguments if a is not type(None)]
    for option in options:
      try:
        return _value(value, option, where)
      except UserError as error:
        if len(options) == 1 or isinstance(error, trust.UntrustedError):
          raise
    raise UserError(f"config.{where}: {value!r} is not {hint}")
  if origin is collections.abc.Callable:  # a function by its dotted name
    return value if callable(value) else resolve(value, where, hint)
  if origin is tuple:
    if not isinstance(value, list | tuple):
      raise UserError(f"config.{where} is a list, not {value!r}")
    return tuple(_value(v, arguments[0], where) for v in value)
  if origin is dict:
    if not isinstance(value, dict):
      raise UserError(f"config.{where} maps names to values, not {value!r}")
    return {str(k): _value(v, arguments[1], f"{where}.{k}") for k, v in value.items()}
  if dataclasses.is_dataclass(hint) or getattr(hint, "_is_protocol", False):
    return build(value, where, hint) if dataclasses.is_dataclass(hint) else build(value, where, None, hint)
  if hint is str and value is None:  # `--config.model.remat=none` is parsed before its type is known
    return "none"
  if hint in (int, float) and isinstance(value, int | float) and not abs(value) < (2**31 if hint is int else 2**1000):
    raise UserError(f"config.{where} is {'too large' if abs(value) < math.inf else 'not a finite number'}")
  if hint is str and isinstance(value, str) and value.startswith("~/"):
    return os.path.expanduser(value)
  if hint is float and isinstance(value, int) and not isinstance(value, bool):
    return float(value)
  if hint is int and isinstance(value, float) and value.is_integer():
    return int(value)
  if hint in (int, float, str, bool) and (not isinstance(value, hint) or (hint is int and isinstance(value, bool))):
    raise UserError(f"config.{where} is {_article(hint)}, not {value!r}")
  return value


def _article(hint: type) -> str:
  return {int: "a whole number", float: "a number", str: "a string", bool: "true or false"}[hint]
