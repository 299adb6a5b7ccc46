"""The config sections `model` and `tokenizer` of a saved model, for a run that starts from it."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from etils import epath

from lmjax.storage import base


def model_section(path: epath.PathLike, **changes: Any) -> dict[str, Any]:
  """Returns the class and all settings of a saved model, its vocabulary and its longest sequence included.

  Args:
    changes: settings that replace those of the model; of a name that it does not have, none. Any `dropout` is 0 for a
      decoder with RMS norms: those are trained without, and do not bear it (see benchmarks/notes/fine_tuning.md).

  Raises:
    UserError: there is no saved model at the path.
  """
  model = base.open(path).task.model
  settings = dataclasses.asdict(model.config)
  if "dropout" in changes and model.kind == "decoder" and settings.get("norm") == "rms":
    changes["dropout"] = 0.0
  settings |= {key: value for key, value in changes.items() if key in settings}
  return {"kind": f"{type(model).__module__}:{type(model).__qualname__}"} | settings


def tokenizer_section(path: epath.PathLike, model: Mapping[str, Any], **trained: Any) -> dict[str, Any]:
  """Returns the section of the tokenizer of a saved model of any format; without a path, the settings of a new one.

  Args:
    model: the section `model`, whose vocabulary counts where the path is absent, as in `lmjax plan`.
    trained: settings of a tokenizer to be trained.
  """
  if not path:
    return trained
  return dict(kind="lmjax.storage.saved_tokenizer:SavedTokenizer", path=path, size=model["vocabulary"])
