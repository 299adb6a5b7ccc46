"""The devices that a saved model without a run's config is placed on."""

from collections.abc import Mapping
from typing import Any

import jax

from lmjax import config as configs
from lmjax import sections
from lmjax.parallel.mesh import MeshShape
from lmjax.parallel.sharding import Layout


def layout_of(overrides: Mapping[str, str] | None) -> Layout:
  """Returns the layout that overrides of a config say, `mesh.fsdp` and `rules`; without them that of one device.

  Raises:
    UserError: no such axis or rules, or the mesh does not fit the devices.
  """
  settings: dict[str, Any] = {"mesh": {}, "rules": "ddp"}
  chosen = {key: text for key, text in (overrides or {}).items() if key.split(".")[0] in settings}
  for key, text in chosen.items():
    configs.override(settings, key, text)
  devices = None if chosen else jax.local_devices()[:1]
  return Layout.build(sections.build(settings["mesh"], "mesh", MeshShape).build(devices), settings["rules"])
