"""Run by test_rules.py with eight simulated devices: a leaf type is sharded as the parameter it represents.

Under every rule set, for every family, stacked layers included; with axis names of their own, and without.
"""

import functools

import jax
import numpy as np

from lmjax.compression.base import Identity
from lmjax.layers.leaves import is_leaf
from lmjax.optim import Optimizer
from lmjax.parallel.sharding import Layout, use_layout
from lmjax.testing import fake_batch, init_state
from lmjax.train import make_step
from lmjax.utils import pytree
from tests.families import FAMILIES, tiny_task
from tests.multidevice.rules import MESHES, alone
from tests.toys import Scale

OPTIMIZER = Optimizer(peak_lr=1e-2, clip=0.0)


def abstract_state(task, layout, transform):
  return init_state(task, OPTIMIZER.build(10), transform, layout, 16, 16, 0, abstract=True)


def check_shardings(family: str, rules: str) -> int:
  """Checks parameters and both moments; returns how many arrays are split."""
  task, layout, split = tiny_task(family), Layout.build(MESHES[rules].build(), rules), 0
  plain = pytree.named_leaves(abstract_state(task, layout, Identity()).params)
  for transform in (Scale(), Scale(named=False)):
    state = abstract_state(task, layout, transform)
    tree = pytree.named_leaves(state.params, is_leaf=is_leaf)
    everything = pytree.named_leaves({"params": state.params, "opt_state": state.opt_state})
    for name, leaf in tree.items():
      if not is_leaf(leaf):
        continue
      spec, shape = plain[name].sharding.spec, plain[name].shape
      for part, array in (("values", leaf.values), ("rest", leaf.rest), ("scale", leaf.scale)):
        sizes = zip(spec, shape, array.shape, strict=True)
        expected = [axes if size == own else None for axes, size, own in sizes]
        copies = [a for path, a in everything.items() if path.endswith(f"{name}/{part}")]
        assert len(copies) == 3, (name, part, len(copies))
        for copy in copies:
          assert list(copy.sharding.spec) == expected, (family, rules, name, part, copy.sharding.spec, expected)
        split += copies[0].sharding.shard_shape(array.shape) != array.shape
  return split


@functools.cache
def losses(family: str, rules: str) -> list[float]:
  """Returns the losses of two steps."""
  layout = Layout.build(MESHES[rules].build(), rules) if rules else alone()
  task = tiny_task(family)
  with use_layout(layout):
    state = init_state(task, OPTIMIZER.build(10), Scale(), layout, 16, 16, 0)
    step = jax.jit(make_step(task, OPTIMIZER.build(10), Scale()), donate_argnums=0)
    batch = fake_batch(task, 16, 16)
    batch = jax.device_put(batch, layout.batch(batch))
    values = []
    for _ in range(2):
      state, metrics = step(state, batch, jax.random.key(1))
      values.append(metrics["loss"].value())
  return values


def main():
  assert jax.device_count() == 8
  for family in FAMILIES:
    for rules in MESHES:
      split = check_shardings(family, rules)
      assert (split > 0) == (rules != "ddp"), (family, rules, split)
  print("leaf types are split as their parameters", flush=True)
  for family, rules in (("Llama", "fsdp_tp"), ("T5", "sequence")):
    np.testing.assert_allclose(losses(family, rules), losses(family, ""), rtol=1e-3, err_msg=f"{family}, {rules}")
    print("same loss of a leaf type in", family, flush=True)


if __name__ == "__main__":
  main()
