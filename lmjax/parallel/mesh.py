"""The device mesh, and the rule sets that say which of its axes carries which logical axis, as data.

A rule is `(logical axis, mesh axis or axes)`. Read per array: the first dimension that wants a mesh axis gets it, and
an axis with no rule is replicated. Parameters are named by `utils.shapes.LEGEND`; activations by `batch` and `length`,
by the names of parameters inside attention and the MLP, and by `residual_length`: the length of the residual stream
between them, which may be split over the devices that share a layer's heads, since norms and sums need no other token
(Korthikanti et al., 2022, arXiv:2205.05198): else each of them would keep all of it for the backward pass.
"""

import dataclasses
import math

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh

from lmjax.utils.errors import UserError

Rules = tuple[tuple[str, tuple[str, ...]], ...]

BATCH = ("batch", ("data", "fsdp"))
MODEL = (
  ("vocabulary", ("model",)),
  ("heads", ("model",)),
  ("kv_heads", ("model",)),
  ("mlp", ("model",)),
  ("residual_length", ("model",)),
)

RULES: dict[str, Rules] = {
  "ddp": (BATCH,),
  "fsdp": (BATCH, ("width", ("fsdp",))),
  "tp": (BATCH, *MODEL),
  "fsdp_tp": (BATCH, *MODEL, ("width", ("fsdp",))),
  "sequence": (BATCH, ("length", ("sequence",)), ("residual_length", ("sequence",)), ("width", ("fsdp", "sequence"))),
}


@dataclasses.dataclass(frozen=True)
class MeshShape:
  """Devices along each axis; -1 (at most once) takes what is left.

  Slices of a TPU are joined by the data-centre network, which only `data` crosses: it is a multiple of the slices.
  """

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
    auto = (AxisType.Auto,) * len(shape)
    # GPUs have a slice for every host, which any axis may cross.
    slices = len({device.slice_index for device in devices}) if _sliced(devices[0]) else 1
    if slices > 1:
      if shape["data"] % slices:
        raise UserError(f"mesh {shape}: {slices} slices must divide data={shape['data']}, the only axis between slices")
      inner = (shape["data"] // slices, *list(shape.values())[1:])
      return Mesh(
        mesh_utils.create_hybrid_device_mesh(inner, (slices, 1, 1, 1), devices), tuple(shape), axis_types=auto
      )
    if len(set(devices)) < len(devices):  # stand-ins for devices that are only counted
      return Mesh(np.array(devices).reshape(tuple(shape.values())), tuple(shape), axis_types=auto)
    return jax.make_mesh(tuple(shape.values()), tuple(shape), axis_types=auto, devices=devices)


def _sliced(device: jax.Device) -> bool:
  return device.platform == "tpu" and getattr(device, "slice_index", None) is not None
