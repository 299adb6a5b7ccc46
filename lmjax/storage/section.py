"""The config section `model` of a saved model, for a run that starts from it."""

import dataclasses
from typing import Any

from etils import epath

from lmjax.storage import base


def model_section(path: epath.PathLike, **changes: Any) -> dict[str, Any]:
  """Returns the class and all settings of a saved model, its vocabulary and its longest sequence included.

  Args:
    changes: settings that replace those of the model; of a name that it does not have, none.

  Raises:
    UserError: there is no saved model at the path.
  """
  model = base.open(path).task.model
  settings = dataclasses.asdict(model.config)
  settings |= {key: value for key, value in changes.items() if key in settings}
  return {"kind": f"{type(model).__module__}:{type(model).__qualname__}"} | settings
