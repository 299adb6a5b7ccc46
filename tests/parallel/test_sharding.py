"""Layouts: where the rule sets put parameters, activations and batches."""

import subprocess
import sys
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from lmjax.layers.stack import stack_names
from lmjax.parallel.mesh import MeshShape
from lmjax.parallel.sharding import (
  Layout,
  LogicallyPartitioned,
  constrain,
  count_parameters,
  current_layout,
  use_layout,
)
from lmjax.utils.errors import UserError
from tests.conftest import ROOT


def layout(rules, **sizes):
  """Returns a layout over copies of one device."""
  sizes = {"data": 1} | sizes
  return Layout.build(MeshShape(**sizes).build([jax.devices()[0]] * int(np.prod(list(sizes.values())))), rules)


def boxed(shape, names, rows=None):
  return LogicallyPartitioned(jax.ShapeDtypeStruct(shape, jnp.float32), names, rows)


KERNEL = ("width", "heads", "head")
TABLE = ("vocabulary", "width")


@pytest.mark.parametrize(
  "rules, sizes, expected",
  [
    # (kernel, table, batch, residual stream)
    ("ddp", dict(data=8), ((), (), ("data", None), ("data", None))),
    ("fsdp", dict(data=2, fsdp=4), (("fsdp",), (None, "fsdp"), (("data", "fsdp"), None), (("data", "fsdp"), None))),
    ("tp", dict(data=2, model=4), ((None, "model"), ("model",), ("data", None), ("data", "model"))),
    (
      "fsdp_tp",
      dict(data=2, fsdp=2, model=2),
      (("fsdp", "model"), ("model", "fsdp"), (("data", "fsdp"), None), (("data", "fsdp"), "model")),
    ),
    (
      "sequence",
      dict(data=2, sequence=4),
      (("sequence",), (None, "sequence"), ("data", "sequence"), ("data", "sequence")),
    ),
    (
      "sequence",
      dict(fsdp=2, sequence=4),
      ((("fsdp", "sequence"),), (None, ("fsdp", "sequence")), ("fsdp", "sequence"), ("fsdp", "sequence")),
    ),
  ],
)
def test_rule_sets(rules, sizes, expected):
  where = layout(rules, **sizes)
  axes = (KERNEL, TABLE, ("batch", "length"), ("batch", "residual_length"))
  for logical, entries in zip(axes, expected, strict=True):
    padded = (*entries, *[None] * (len(logical) - len(entries)))
    assert where.spec(*logical) == PartitionSpec(*padded), logical


def test_a_mesh_axis_shards_one_dimension_of_an_array():
  rules = [["width", "fsdp"], ["mlp", ["fsdp", "model"]]]
  where = layout(rules, fsdp=2, model=2)
  assert where.spec("width", "mlp") == PartitionSpec("fsdp", "model")
  assert where.spec("mlp", "width") == PartitionSpec(("fsdp", "model"), None)
  assert where.spec("heads", None) == PartitionSpec(None, None), "no rule"


def test_an_axis_that_does_not_divide_is_replicated_and_reported():
  where = layout("fsdp_tp", fsdp=2, model=2)
  assert where.spec(*KERNEL, shape=(32, 3, 8)) == PartitionSpec("fsdp", None, None)
  tree = {"good": boxed((32, 4, 8), KERNEL), "odd": boxed((32, 3, 8), KERNEL), "both": boxed((31, 3, 8), KERNEL)}
  assert where.replicated(tree) == [
    "both (31, 3, 8) is replicated along 'width', which the mesh does not divide",
    "both (31, 3, 8) is replicated along 'heads', which the mesh does not divide",
    "odd (32, 3, 8) is replicated along 'heads', which the mesh does not divide",
  ]
  abstract = where.abstract(tree)
  assert abstract["odd"].sharding.spec == PartitionSpec("fsdp", None, None)
  assert abstract["good"].sharding.spec == PartitionSpec("fsdp", "model", None)


def test_the_axis_that_is_freed_goes_to_a_later_dimension():
  where = layout([["width", "model"], ["mlp", "model"]], model=2)
  assert where.spec("width", "mlp", shape=(3, 4)) == PartitionSpec(None, "model")
  assert where.replicated({"a": boxed((3, 4), ("width", "mlp"))}) == [
    "a (3, 4) is replicated along 'width', which the mesh does not divide"
  ]


def test_number_of_shards():
  where = layout("fsdp_tp", data=2, fsdp=3, model=2)
  assert where.num_shards("batch") == 6 and where.num_shards("heads") == 2 and where.num_shards("head") == 1
  assert where.num_shards("batch", 12) == 6 and where.num_shards("batch", 8) == 1, "8 is not a multiple of 6"


@pytest.mark.parametrize(
  "rules, sizes, words",
  [
    ("fspd", {}, "unknown rule set 'fspd'; did you mean 'fsdp'"),
    ([["width", "fspd"]], {}, "width -> fspd: unknown mesh axis; did you mean 'fsdp'"),
    ("fsdp", dict(model=2), "no sharding rule uses mesh axis 'model'; rule sets that do: tp, fsdp_tp"),
  ],
)
def test_unusable_rules_are_refused(rules, sizes, words):
  with pytest.raises(UserError, match=words):
    layout(rules, **sizes)


def test_names_of_stacked_parameters_and_their_number():
  tree = {"kernel": boxed((4, 6), ("width", "mlp")), "table": boxed((128, 4), TABLE, rows=50)}
  assert count_parameters(tree) == 4 * 6 + 50 * 4, "padding is not counted"
  assert stack_names(tree)["kernel"].names == ("layers", "width", "mlp")
  leaf = tree["kernel"].add_axis(1, {})
  assert leaf.names == ("width", "layers", "mlp") and leaf.remove_axis(1, {}).names == ("width", "mlp")
  assert leaf.unbox() is leaf.value and leaf.replace_boxed(3).value == 3 and leaf.replace_boxed(3).names == leaf.names


def test_the_layout_in_use():
  where = layout("ddp", data=1)
  x = jnp.ones((2, 2))
  assert current_layout() is None and constrain(x, "batch", None) is x
  with use_layout(where):
    assert current_layout() is where and constrain(x, "batch", None) is x, "one device"
  assert current_layout() is None


def test_rows_of_a_host_are_those_of_its_devices(monkeypatch):
  assert layout("ddp").rows(6) == list(range(6))
  parts = {0: (slice(4, 8),), 1: (slice(4, 8),), 2: (slice(0, 2),)}  # two devices share rows
  sharding = types.SimpleNamespace(addressable_devices_indices_map=lambda shape: parts)
  monkeypatch.setattr(Layout, "sharding", lambda self, *logical, shape: sharding)
  assert layout("ddp").rows(8) == [0, 1, 4, 5, 6, 7]


def test_a_host_with_some_of_the_rows_provides_those_that_are_asked_for(monkeypatch):
  """Rows 2, 3, 6 and 7 of 8 are local; jax asks for the parts of the local devices by global index."""
  monkeypatch.setattr(jax, "make_array_from_callback", lambda shape, sharding, read: read)
  whole = np.arange(8 * 3).reshape(8, 3)
  rows = [2, 3, 6, 7]
  spec = {"inputs": jax.ShapeDtypeStruct((8, 3), jnp.int32)}
  read = layout("ddp").shard_batch(spec, {"inputs": whole[rows]}, rows)["inputs"]
  for index in ((slice(2, 4), slice(None)), (slice(6, 8), slice(None)), (slice(7, 8), slice(1, 3))):
    np.testing.assert_array_equal(read(index), whole[index])


EIGHT = """
import jax, numpy as np
from lmjax.layers.stack import stack_names
from lmjax.parallel.mesh import MeshShape
from lmjax.parallel.sharding import Layout, constrain, use_layout
layout = Layout.build(MeshShape(data=2, fsdp=2, sequence=2).build(), "sequence")
shapes = {"inputs": (8, 6), "label": (8,), "vectors": (8, 6, 5)}
batch = {key: np.arange(np.prod(shape)).reshape(shape) for key, shape in shapes.items()}
spec = {key: jax.ShapeDtypeStruct(a.shape, a.dtype) for key, a in batch.items()}
sharded = layout.shard_batch(spec, batch, layout.rows(8))
parts = {"inputs": (2, 3), "label": (2,), "vectors": (2, 3, 5)}
for key, array in sharded.items():
  assert len(array.addressable_shards) == 8 and array.sharding == layout.batch(spec)[key]
  for shard in array.addressable_shards:
    assert shard.data.shape == parts[key], (key, shard.data.shape)
    np.testing.assert_array_equal(shard.data, batch[key][shard.index])
with use_layout(layout):
  constrained = jax.jit(lambda x: constrain(x, "batch", "length"))(np.zeros((8, 6)))
  odd = jax.jit(lambda x: constrain(x, "batch", "length"))(np.zeros((8, 5)))
assert constrained.sharding.shard_shape((8, 6)) == (2, 3) and odd.sharding.shard_shape((8, 5)) == (2, 5)
print("every device has its part")
"""


def test_every_device_has_its_part_of_a_batch():
  program = f"import jax\njax.config.update('jax_num_cpu_devices', 8)\n{EIGHT}"
  process = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=120)
  assert "every device has its part" in process.stdout, process.stderr[-2000:]
