"""A grid of runs: its values, the folder of each run, and whether its config can be built."""

import hashlib
import re

import jax
from etils import epath

from lmjax import config, experiment
from lmjax.utils.files import expand, read_json


def values_of(text: str) -> list[str]:
  """Returns the values of an axis, which commas separate that are not in brackets or quotes."""
  values, depth, quote = [""], 0, ""
  for c in text:
    if c in "'\"" and quote in ("", c):
      quote = "" if quote else c
    depth += 0 if quote else (c in "([{") - (c in ")]}")
    if c == "," and not quote and not depth:
      values.append("")
    else:
      values[-1] += c
  return values


def folder_of(point: tuple[tuple[str, str], ...]) -> str:
  """Returns the name of a run's folder; a value with other characters than a name has is followed by its hash."""
  name = "_".join(f"{key.split('.')[-1]}-{value}" for key, value in point)
  plain = re.sub(r"[^\w.+=,-]+", "_", name)[:100]
  return name if plain == name else f"{plain}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"


def check(reference: str, overrides: dict[str, str]) -> None:
  """Raises UserError where the config of a run has an unknown key or a value that cannot be."""
  experiment.build(config.load(reference, overrides), devices=jax.devices())


def finished(folder: epath.PathLike) -> bool:
  """Returns whether the run in a folder has reached its end."""
  file = expand(folder) / "summary.json"
  return file.exists() and read_json(file).get("finished") is not None
