"""How a sentence-transformers folder turns vectors of tokens into one vector of a sentence."""

import json
from typing import Any

from etils import epath

from lmjax.utils.errors import UserError
from lmjax.utils.files import inside

POOLINGS = {"mean_tokens": "mean", "cls_token": "first", "lasttoken": "last"}


def read_pooling(path: epath.PathLike) -> dict[str, Any]:
  """Returns the pooling and normalization of a folder, {"pooling", "normalize"}; {} where it has no modules.json.

  Raises:
    UserError: modules.json cannot be read, or names another pooling than mean, first (cls) or last.
  """
  folder = epath.Path(path)
  if not (folder / "modules.json").exists():
    return {}
  settings: dict[str, Any] = {}
  try:
    modules = json.loads((folder / "modules.json").read_text())
    settings["normalize"] = any(module["type"].endswith("Normalize") for module in modules)
    for module in modules:
      if module["type"].endswith("Pooling"):
        pooling = json.loads((inside(folder, module["path"]) / "config.json").read_text())
        for name, value in POOLINGS.items():
          if pooling.get(f"pooling_mode_{name}"):
            settings["pooling"] = value
  except (OSError, ValueError, KeyError, TypeError) as error:
    raise UserError(f"{folder / 'modules.json'} cannot be read: {error}") from error
  if "pooling" not in settings:
    raise UserError(f"{folder}: the pooling is not mean, cls or lasttoken; choose one with --pooling")
  return settings
