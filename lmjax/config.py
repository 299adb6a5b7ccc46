"""Configs: functions that return plain nested data, each leaf of which is consumed by exactly one strict constructor.

A config file has `get_config(argument)`; `configs/gpt2.py:size=124m,debug` calls it with `size=124m,debug`. What its
sections describe is built by `sections`.
"""

import ast
import importlib.util
import json
import types
from typing import Any

from etils import epath
from ml_collections import ConfigDict

from lmjax.sections import FORMAT, KEYS, build, complete, resolve, upgrade, with_defaults
from lmjax.utils import files
from lmjax.utils.errors import UserError, did_you_mean

__all__ = ["FORMAT", "build", "complete", "debug", "given", "load", "override", "resolve", "upgrade", "variant"]


def variant(argument: str, **defaults: Any) -> types.SimpleNamespace:
  """Returns the choices of a config's argument, `size=124m,debug`, over their defaults.

  A default that is a tuple lists what may be chosen, its first being the default; False marks a switch.

  Raises:
    UserError: an unknown name or choice.
  """
  chosen = {key: value[0] if isinstance(value, tuple) else value for key, value in defaults.items()}
  for item in filter(None, argument.split(",")):
    key, given, value = item.partition("=")
    if key not in defaults:
      raise UserError(f"config: no variant {key!r}{did_you_mean(key, defaults)}")
    choices = defaults[key]
    if isinstance(choices, tuple) and value not in choices:
      raise UserError(f"config: {key}={value}: no such choice{did_you_mean(value, choices)}")
    chosen[key] = value if given else True
  return types.SimpleNamespace(**chosen)


def debug(config: ConfigDict) -> ConfigDict:
  """Returns the config shrunk to 20 steps of a tiny model on Python's documentation: under a minute on a laptop."""
  config.update(steps=20, batch=8, optim=dict(warmup=2, peak_lr=1e-3), evals=dict(every=10))
  config.update(checkpoint=dict(every=10), log=dict(every=1))
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
  file = epath.Path(path)
  if not file.exists():
    known = [str(p) for p in epath.Path("configs").glob("*.py")] if epath.Path("configs").exists() else []
    raise UserError(f"config: no file {path}{did_you_mean(path, known)}")
  if file.suffix == ".json":
    config = files.read_json(file)
  else:
    spec = importlib.util.spec_from_file_location("lmjax_config", file)
    module = importlib.util.module_from_spec(spec)
    try:
      spec.loader.exec_module(module)
    except SyntaxError as error:
      raise UserError(f"config: {path}:{error.lineno}: {error.msg}") from error
    if not hasattr(module, "get_config"):
      raise UserError(f"config: {path} has no function get_config(argument)")
    config = json.loads(ConfigDict(module.get_config(argument)).to_json())
  config = with_defaults(config)
  for key, text in (overrides or {}).items():
    override(config, key, text)
  return upgrade(config, path, edited=bool(overrides))


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
    config[last] = ast.literal_eval(text)
  except (ValueError, SyntaxError):
    config[last] = {"true": True, "false": False, "none": None}.get(text.lower(), text)
