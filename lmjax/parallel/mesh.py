"""The device mesh: four axes, `data fsdp sequence model`, one of which may be inferred."""

import dataclasses
import math

import jax
from jax.sharding import AxisType, Mesh

from lmjax.utils.errors import UserError


@dataclasses.dataclass(frozen=True)
class MeshShape:
  """Devices along each axis; -1 (at most once) takes what is left."""

  data: int = -1
  fsdp: int = 1
  sequence: int = 1
  model: int = 1

  def build(self, devices: list[jax.Device] | None = None) -> Mesh:
    """Returns the mesh over `devices` (default all), every axis in Auto mode.

    Raises:
      UserError: the axes do not multiply to the number of devices.
    """
    devices = jax.devices() if devices is None else devices
    shape = dataclasses.asdict(self)
    free = [axis for axis, size in shape.items() if size == -1]
    fixed = math.prod(size for size in shape.values() if size != -1)
    if len(free) > 1 or any(size < 1 and size != -1 for size in shape.values()):
      raise UserError(f"mesh {shape}: sizes are positive, and at most one axis may be -1")
    if free and len(devices) % fixed == 0:
      shape[free[0]] = len(devices) // fixed
    if math.prod(shape.values()) != len(devices):
      raise UserError(
        f"mesh {dataclasses.asdict(self)} does not fit {len(devices)} device(s): the sizes must multiply to it; "
        "set one axis to -1, or simulate devices on a CPU with --devices N"
      )
    # Explicit axes, jax's default, would make every einsum ask for its output sharding.
    return jax.make_mesh(tuple(shape.values()), tuple(shape), axis_types=(AxisType.Auto,) * len(shape), devices=devices)
