"""Run by test_rules.py with eight simulated devices: quantized leaves and masks under every rule set.

Values and scales are split as the parameter, except where a part would split a group; what is computed is what one
device computes.
"""

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from lmjax.compression.prune import Prune
from lmjax.compression.quantize import QTensor, Quantize, names_on
from lmjax.optim import Optimizer
from lmjax.parallel.sharding import Layout, is_partitioned, use_layout
from lmjax.state import named_parameters
from lmjax.testing import fake_batch, init_params, init_state
from lmjax.utils import pytree
from tests.families import tiny_task
from tests.multidevice.rules import MESHES, alone

METHODS = (Quantize(), Quantize("int4", 16, False), Quantize("int8", 16, table_group=16))


def quantized(family: str, method: Quantize):
  """Returns the axis names and the leaves of a family, by path names."""
  task = tiny_task(family)
  boxes = pytree.named_leaves(named_parameters(task, 16, 16), is_leaf=is_partitioned)
  params = pytree.named_leaves(init_params(task, fake_batch(task)))
  return boxes, method.apply(task, {name: box.replace(value=params[name]) for name, box in boxes.items()})


def placed(boxes, leaves, layout: Layout):
  """Returns the leaves on their shardings, how many values are split, and how many leaves have a group kept whole."""
  tree, split, whole = {}, 0, 0
  for name, value in leaves.items():
    names = names_on(value, boxes[name].names, layout) if isinstance(value, QTensor) else boxes[name].names
    whole += names != boxes[name].names
    tree[name] = jax.tree.map(lambda x, n=names: jax.device_put(x, layout.sharding(*n, shape=x.shape)), value)
    if isinstance(value, QTensor):
      check_groups(name, tree[name])
      split += tree[name].values.sharding.shard_shape(value.values.shape) != value.values.shape
  return {"model": {}, "heads": {}} | traverse_util.unflatten_dict(tree, sep="/"), split, whole


def check_groups(name: str, leaf: QTensor) -> None:
  """A part of the values has whole groups, with all their scales on the same device."""
  shards = {shard.device: shard for shard in leaf.values.addressable_shards}
  for scale in leaf.scale.addressable_shards:
    values = shards[scale.device]
    for size, count, own, other in zip(leaf.values.shape, leaf.scale.shape, values.index, scale.index, strict=True):
      block = size // count
      first, last = (own.start or 0), (own.stop or size)
      if count > 1:
        assert first % block == 0 and last % block == 0, (name, own)
        assert (other.start or 0) * block <= first and last <= (other.stop or count) * block, (name, own, other)


def main():
  assert jax.device_count() == 8
  seen_whole = 0
  for family in ("Llama", "T5", "LSTM", "ELMo"):
    for method in METHODS:
      boxes, leaves = quantized(family, method)
      for rules in MESHES:
        _, split, whole = placed(boxes, leaves, Layout.build(MESHES[rules].build(), rules))
        assert (split > 0) == (rules != "ddp"), (family, rules, split)
        seen_whole += whole
  assert seen_whole, "some groups would have been split"
  print("quantized leaves keep their groups whole", flush=True)
  for family in ("Llama", "T5"):
    task = tiny_task(family)
    boxes, leaves = quantized(family, METHODS[1])
    batch, results = fake_batch(task, 16, 16), []
    for layout in (alone(), Layout.build(MESHES["fsdp_tp"].build(), "fsdp_tp")):
      with use_layout(layout):
        tree = placed(boxes, leaves, layout)[0]
        forward = jax.jit(lambda tree, batch, task=task: task.forward(tree, batch).logits)
        results.append(np.asarray(forward(tree, jax.device_put(batch, layout.batch(batch)))))
    np.testing.assert_allclose(results[1], results[0], atol=2e-5)
    print("same logits of quantized", family, flush=True)
  for rules in MESHES:
    layout = Layout.build(MESHES[rules].build(), rules)
    state = init_state(tiny_task("T5"), Optimizer().build(10), Prune(0.5), layout, 16, 16, 0, abstract=True)
    params = pytree.named_leaves(state.params)
    for name, mask in pytree.named_leaves(state.transform["masks"]).items():
      assert mask.sharding == params[name].sharding and mask.dtype == jnp.bool_, (rules, name)
  print("masks are split as their kernels", flush=True)


if __name__ == "__main__":
  main()
