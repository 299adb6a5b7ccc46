"""Configs: functions that return plain nested data, each leaf of which is consumed by exactly one strict constructor.

A config file has `get_config(argument)`; `configs/gpt2.py:size=124m,debug` calls it with `size=124m,debug`. What its
sections describe is built by `sections`.
"""

import ast
import importlib.util
import json
import re
import traceback
import types
from collections.abc import Collection
from typing import Any

from etils import epath
from ml_collections import ConfigDict

from lmjax.sections import FORMAT, KEYS, build, complete, resolve, upgrade, with_defaults
from lmjax.utils import files
from lmjax.utils.errors import UserError, did_you_mean, reason

__all__ = ["FORMAT", "build", "complete", "debug", "given", "load", "override", "resolve", "upgrade", "variant"]


SWITCH = {"true": True, "false": False, "1": True, "0": False, "yes": True, "no": False, "on": True, "off": False}


def variant(argument: str, **defaults: Any) -> types.SimpleNamespace:
  """Returns the choices of a config's argument, `size=124m,debug`, over their defaults.

  A default that is a tuple lists what may be chosen, its first being the default; False marks a switch, which is on
  where it is named, and takes `true` or `false`. A value with a comma is quoted, unless it is the name of a file.

  Raises:
    UserError: an unknown name or choice.
  """
  if isinstance(argument, Question):
    raise Answer(defaults)
  chosen = {key: value[0] if isinstance(value, tuple) else value for key, value in defaults.items()}
  for item in _items(argument, defaults):
    key, given, value = item.partition("=")
    if key not in defaults:
      raise UserError(f"config: no variant {key!r}{did_you_mean(key, defaults)}")
    if defaults[key] is False:
      choices, value = SWITCH, value.lower() if given else "true"
    elif not given:
      raise UserError(f"config: {key} needs a value: {key}=VALUE")
    else:
      choices = defaults[key] if isinstance(defaults[key], tuple) else (value,)
    if value not in choices:
      raise UserError(f"config: {key}={value}: no such choice{did_you_mean(value, choices)}")
    chosen[key] = SWITCH[value] if choices is SWITCH else value
  return types.SimpleNamespace(**chosen)


def _items(argument: str, names: Collection[str]) -> list[str]:
  """Returns the choices of an argument, which commas separate; not those in quotes, nor in the name of a file."""
  items: list[str] = []
  for item in re.findall(r"""(?:[^,'"]|'[^']*'|"[^"]*"|['"])+""", argument):
    before = items[-1].partition("=")[2] if items else ""
    if before and item.partition("=")[0] not in names and _starts_a_name(f"{before},{item.partition('/')[0]}"):
      items[-1] += f",{item}"
    else:
      items.append(re.sub(r"""^(\w+=)(['"])(.*)\2$""", r"\1\3", item))
  return items


def _starts_a_name(start: str) -> bool:
  """Returns whether a path is the start of one that is there."""
  path = files.expand(start)
  return path.parent.is_dir() and any(file.name.startswith(path.name) for file in path.parent.iterdir())


def debug(config: ConfigDict) -> ConfigDict:
  """Returns the config shrunk to 20 steps of a tiny model on Python's documentation: under a minute on a laptop."""
  config.update(steps=20, batch=8, optim=dict(warmup=2, peak_lr=1e-3), evals=dict(every=10))
  config.update(checkpoint=dict(every=10), log=dict(every=1, samples=0))
  config.mesh = ConfigDict()
  config.data = ConfigDict(resolve(config.data.kind, "data.kind").debug(config.data.to_dict()))
  config.model.update({k: v for k, v in (TINY | TINY_RECURRENT).items() if k in config.model})
  return config


def given(preset: dict[str, Any]) -> dict[str, Any]:
  """Returns a model preset without the fields that other sections of a config set: vocabulary and length."""
  return {key: value for key, value in preset.items() if key not in ("vocabulary", "length")}


TINY = dict(width=64, depth=2, heads=4, kv_heads=2, head_size=16, mlp=128, dtype="float32")
TINY_RECURRENT = dict(cells=64, filters=((1, 8), (2, 16)))


def load(reference: str, overrides: dict[str, str] | None = None) -> dict[str, Any]:
  """Returns the plain data of `PATH[:argument]`, with overrides such as {"optim.peak_lr": "3e-4"} applied.

  Raises:
    UserError: no such file, no get_config in it, a wrong argument, an unknown top-level key.
  """
  path, _, argument = reference.partition(":")
  file = find(path)
  if file.suffix == ".json":
    config = files.read_json(file)
  else:
    config = _run(path, file, argument)
  config = with_defaults(config)
  for key, text in (overrides or {}).items():
    override(config, key, text)
  return upgrade(config, path, edited=bool(overrides))


def known() -> dict[str, epath.Path]:
  """Returns the configs by their names: those of the folder `configs` here, and those that come with lmjax."""
  package = files.expand(__file__).parent
  folders = (package / "configs", package.parent / "configs", files.expand("configs"))  # of a wheel, of a checkout
  configs = {file.stem: file for folder in folders if folder.is_dir() for file in sorted(folder.glob("*.py"))}
  return {name: file for name, file in sorted(configs.items()) if not name.startswith("_")}


def find(path: str) -> epath.Path:
  """Returns the file of a config by its path or its name: `my/config.py`, `configs/gpt2.py`, `gpt2`.

  Raises:
    UserError: there is none.
  """
  file, configs = files.expand(path), known()
  if file.is_file():
    return file
  name = path.removeprefix("configs/").removesuffix(".py")
  if name in configs and not file.exists():
    return configs[name]
  is_folder = file.is_dir()
  inside = map(str, file.glob("*.py")) if is_folder else configs
  near = did_you_mean(path if is_folder else name, [*inside])
  raise UserError(f"config: {path} is a folder{near}" if is_folder else f"config: no file {path}{near}")


class Question(str):
  """An argument that asks a config for its variants."""


class Answer(Exception):
  """The variants of a config."""


def variants(reference: str) -> dict[str, Any]:
  """Returns the variants of a config with their defaults, as `variant` takes them."""
  path = reference.partition(":")[0]
  file = find(path)
  try:
    _run(path, file, Question())
  except Answer as answer:
    return answer.args[0]
  return {}


def documentation(reference: str | epath.Path) -> str:
  """Returns the docstring of a config file; empty where it has none."""
  file = reference if isinstance(reference, epath.Path) else find(reference.partition(":")[0])
  try:
    return ast.get_docstring(ast.parse(files.read_text(file))) or ""
  except SyntaxError:  # or a JSON file
    return ""


def _run(path: str, file: epath.Path, argument: str) -> dict[str, Any]:
  """Returns what the function of a config file returns, as plain data."""
  spec = importlib.util.spec_from_file_location("lmjax_config", file)
  if spec is None:
    raise UserError(f"config: {path} is not a Python file; give configs/NAME.py or a run's config.json")
  module = importlib.util.module_from_spec(spec)
  try:
    spec.loader.exec_module(module)
    if not hasattr(module, "get_config"):
      raise UserError(f"config: {path} has no function get_config(argument)")
    return json.loads(ConfigDict(module.get_config(argument)).to_json())
  except (UserError, Answer):
    raise
  except SyntaxError as error:
    raise UserError(f"config: {error.filename}:{error.lineno}: {error.msg}") from error
  except Exception as error:  # what a config of the user raises
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(file)]
    where = f"{path}:{lines[-1]}" if lines else path
    raise UserError(f"config: {where}: {type(error).__name__}: {reason(error)}; --traceback shows more") from error


def override(config: dict[str, Any], key: str, text: str) -> None:
  """Sets a key of a config's plain data to a value as written on a command line.

  Raises:
    UserError: no such section.
  """
  *parents, last = key.split(".")
  if key.split(".")[0] not in KEYS:
    raise UserError(f"config.{key}: no such key{did_you_mean(key.split('.')[0], KEYS)}")
  for i, parent in enumerate(parents):
    if not isinstance(config.get(parent), dict):
      raise UserError(f"config.{'.'.join(parents[: i + 1])}: no such section{did_you_mean(parent, config)}")
    config = config[parent]
  try:
    config[last] = json.loads(json.dumps(ast.literal_eval(text)))  # as config.json has it: no tuples, keys are strings
  except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
    config[last] = {"true": True, "false": False, "none": None}.get(text.lower(), text)
