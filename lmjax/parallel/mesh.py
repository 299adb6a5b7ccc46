"""The device mesh, and the rule sets that map logical axes to mesh axes, as data.

A rule is `(logical axis, mesh axis or axes)`. Each mesh axis shards at most one dimension of an array, the first whose
rule names it; a logical axis without a rule is replicated. Parameters use the names of `utils.shapes.LEGEND`.
Activations use `batch` and `length`, inside attention and MLP also the names of the parameters, and `residual_length`
for the length of the residual stream between them. This length may be sharded over the devices that share the heads of
a layer, because norms and sums act on each token separately (sequence parallelism, Korthikanti et al., 2022,
arXiv:2205.05198); otherwise each of these devices would keep the whole residual stream for the backward pass.
"""

import dataclasses
import math
from typing import ClassVar

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh

from lmjax.utils.errors import UserError

Rules = tuple[tuple[str, tuple[str, ...]], ...]

BATCH = (("batch", ("data", "fsdp", "expert")), ("experts", ("expert",)))
MODEL = (
  ("vocabulary", ("model",)),
  ("heads", ("model",)),
  ("kv_heads", ("model",)),
  ("mlp", ("model",)),
  ("residual_length", ("model",)),
)

RULES: dict[str, Rules] = {
  "ddp": BATCH,
  "fsdp": (*BATCH, ("width", ("fsdp", "expert"))),
  "tp": (*BATCH, *MODEL),
  "fsdp_tp": (*BATCH, *MODEL, ("width", ("fsdp", "expert"))),
  "sequence": (*BATCH, ("length", ("sequence",)), ("residual_length", ("sequence",)), ("width", ("fsdp", "sequence"))),
}


# The keys of a config, and their values, with which every device holds a part of each parameter.
MORE_SHARDS = {"mesh.data": "1", "mesh.fsdp": "-1", "rules": "fsdp"}


@dataclasses.dataclass(frozen=True)
class MeshShape:
  """The number of devices along each mesh axis; one axis may be -1, for the remaining devices.

  With several TPU slices, which a data-centre network connects, `data` must be a multiple of their number: it is the
  only axis that spans slices.
  """

  negative: ClassVar = ("data", "fsdp", "sequence", "model", "expert")  # the fields that may be below 0 in a config

  data: int = -1
  fsdp: int = 1
  sequence: int = 1
  model: int = 1
  expert: int = 1  # the parts of the experts of a layer; each also has rows of its own

  def build(self, devices: list[jax.Device] | None = None) -> Mesh:
    """Returns the mesh over `devices` (default: all), with every axis in Auto mode.

    Raises:
      UserError: the product of the axes is not the number of devices, or the slices do not divide `data`.
    """
    devices = jax.devices() if devices is None else devices
    shape = dataclasses.asdict(self)
    free = [axis for axis, size in shape.items() if size == -1]
    fixed = math.prod(size for size in shape.values() if size != -1)
    if len(free) > 1 or any(size < 1 and size != -1 for size in shape.values()):
      raise UserError(f"mesh {shape}: sizes must be positive, and at most one axis may be -1")
    if free and len(devices) % fixed == 0:
      shape[free[0]] = len(devices) // fixed
    if math.prod(shape.values()) != len(devices):
      raise UserError(
        f"mesh {dataclasses.asdict(self)} does not fit {len(devices)} device(s): their number must be the product of "
        "the sizes; set one axis to -1, or simulate devices on a CPU with --devices N"
      )
    # With Explicit axes, jax's default, every einsum would need an output sharding.
    auto = (AxisType.Auto,) * len(shape)
    # GPU hosts count as slices too, but any axis may span them.
    slices = len({getattr(device, "slice_index", None) for device in devices if device.platform == "tpu"}) or 1
    if slices > 1:
      if shape["data"] % slices:
        raise UserError(f"mesh {shape}: data must be a multiple of the {slices} slices, which only this axis spans")
      inner = (shape["data"] // slices, *list(shape.values())[1:])
      hybrid = mesh_utils.create_hybrid_device_mesh(inner, (slices, *[1] * 4), devices)
      return Mesh(hybrid, tuple(shape), axis_types=auto)
    if len(set(devices)) < len(devices):  # copies of one device, which stand for absent ones in `planning`
      return Mesh(np.array(devices).reshape(tuple(shape.values())), tuple(shape), axis_types=auto)
    return jax.make_mesh(tuple(shape.values()), tuple(shape), axis_types=auto, devices=devices)
