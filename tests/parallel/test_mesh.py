"""Meshes: sizes, the remaining axis, and TPU slices, with stand-ins for absent devices."""

import dataclasses

import jax
import numpy as np
import pytest

from lmjax.parallel.mesh import RULES, MeshShape
from lmjax.utils.errors import UserError
from lmjax.utils.shapes import LEGEND


def copies(count):
  """Returns `count` times the first device, as planning for absent GPUs does."""
  return [jax.devices()[0]] * count


@dataclasses.dataclass(frozen=True)
class Chip:
  """What jax reads of a TPU device."""

  id: int
  coords: tuple[int, int, int]
  slice_index: int
  platform: str = "tpu"
  device_kind: str = "TPU v5 lite"
  core_on_chip: int = 0
  process_index: int = 0


def two_slices():
  grid = [(x, y, 0) for y in range(2) for x in range(2)]
  return [Chip(4 * slice_index + i, coords, slice_index) for slice_index in range(2) for i, coords in enumerate(grid)]


@pytest.mark.parametrize(
  "shape, sizes",
  [
    (MeshShape(), (8, 1, 1, 1, 1)),
    (MeshShape(data=2, fsdp=-1), (2, 4, 1, 1, 1)),
    (MeshShape(data=1, fsdp=2, sequence=-1, model=2), (1, 2, 2, 2, 1)),
    (MeshShape(data=2, fsdp=2, model=-1), (2, 2, 1, 2, 1)),
    (MeshShape(data=4, model=2), (4, 1, 1, 2, 1)),
    (MeshShape(data=1, fsdp=-1, expert=4), (1, 2, 1, 1, 4)),
  ],
)
def test_one_axis_takes_the_remaining_devices(shape, sizes):
  mesh = shape.build(copies(8))
  assert mesh.axis_names == ("data", "fsdp", "sequence", "model", "expert")
  assert tuple(mesh.shape.values()) == mesh.devices.shape == sizes
  assert set(mesh.axis_types) == {jax.sharding.AxisType.Auto}


@pytest.mark.parametrize(
  "shape, words",
  [
    (MeshShape(data=-1, fsdp=-1), "at most one axis may be -1"),
    (MeshShape(data=0), "must be positive"),
    (MeshShape(data=-2), "must be positive"),
    (MeshShape(data=3), "does not fit 8 device"),
    (MeshShape(data=-1, model=3), "does not fit 8 device"),
    (MeshShape(data=-1, model=16), "does not fit 8 device"),
  ],
)
def test_impossible_sizes_are_refused(shape, words):
  with pytest.raises(UserError, match=words) as error:
    shape.build(copies(8))
  assert "\n" not in str(error.value)


def test_by_default_a_mesh_has_every_device():
  assert list(MeshShape().build().devices.flat) == jax.devices()


@pytest.mark.parametrize("shape", [MeshShape(data=2, fsdp=4), MeshShape(data=4, model=2), MeshShape(fsdp=2, model=2)])
def test_only_the_data_axis_spans_slices(shape):
  devices = shape.build(two_slices()).devices
  assert sorted(device.id for device in devices.flat) == list(range(8))
  slices = np.vectorize(lambda device: device.slice_index)(devices).reshape(devices.shape[0], -1)
  assert (slices == slices[:, :1]).all(), "each index along `data` lies in one slice"
  assert (slices[: len(slices) // 2] == slices[0, 0]).all(), "and those of a slice are neighbours"


def test_slices_must_divide_the_data_axis():
  with pytest.raises(UserError, match="data must be a multiple of the 2 slices"):
    MeshShape(data=1, fsdp=8).build(two_slices())


def test_rule_sets_name_known_axes_once():
  axes = {field.name for field in dataclasses.fields(MeshShape)}
  activations = {"batch", "length", "residual_length"}
  for name, rules in RULES.items():
    logical = [axis for axis, _ in rules]
    assert set(logical) <= activations | set(LEGEND.values()), name
    assert len(logical) == len(set(logical)) <= 15, name
    assert {axis for _, mesh_axes in rules for axis in mesh_axes} <= axes, name
