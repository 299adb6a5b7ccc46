"""Run by test_rules.py with eight simulated devices: LoRA under every rule set is LoRA on one device.

Factors are split as the axes that they share with their kernel, and what is frozen as in full training.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from lmjax.compression.base import Identity
from lmjax.compression.lora import LoRA
from lmjax.optim import Optimizer
from lmjax.parallel.sharding import Layout, use_layout
from lmjax.testing import fake_batch, init_state
from lmjax.train import make_step
from lmjax.utils import pytree
from tests.families import FAMILIES, tiny_task
from tests.multidevice.rules import MESHES, alone

OPTIMIZER = Optimizer(peak_lr=1e-2, warmup=0, clip=0.0)
ALL = LoRA("kernel$", 4, dtype="bfloat16")
LAYER = "model/stack/layers"


def check_shardings(family: str, rules: str) -> None:
  task, layout = tiny_task(family), Layout.build(MESHES[rules].build(), rules)
  lora, plain = (
    init_state(task, OPTIMIZER.build(10), transform, layout, 16, 16, 0, abstract=True)
    for transform in (ALL, Identity())
  )
  whole, frozen = pytree.named_leaves(plain.params), pytree.named_leaves(lora.frozen.transform)
  for name, leaf in frozen.items():
    assert leaf.sharding == whole[name].sharding, (family, rules, name)
    assert leaf.dtype == (jnp.float32 if "norm" in name else jnp.bfloat16), name
  arrays = pytree.named_leaves({"params": lora.params, "opt_state": lora.opt_state})
  for name, leaf in pytree.named_leaves(lora.params).items():
    if name.endswith("/a") and "stack" in name:
      spec = list(whole[name.removesuffix("/a")].sharding.spec)
      assert list(leaf.sharding.spec) == [*spec[: leaf.ndim - 1], None], (family, rules, name)
    copies = [other for path, other in arrays.items() if path.endswith(name)]
    assert len(copies) == 3 and all(copy.sharding == leaf.sharding for copy in copies), name


@functools.cache
def losses(family: str, rules: str) -> list[float]:
  """Returns the losses of three steps."""
  layout = Layout.build(MESHES[rules].build(), rules) if rules else alone()
  task = tiny_task(family)
  with use_layout(layout):
    state = init_state(task, OPTIMIZER.build(10), ALL, layout, 16, 16, 0)
    step = jax.jit(make_step(task, OPTIMIZER.build(10), ALL), donate_argnums=0)
    batch = fake_batch(task, 16, 16)
    batch = jax.device_put(batch, layout.batch(batch))
    kept, values = state.frozen, []
    for _ in range(3):
      state, metrics = step(state.replace(frozen=jax.tree.map(jnp.copy, kept)), batch, jax.random.key(1))
      values.append(metrics["loss"].value())
  return values


def main():
  assert jax.device_count() == 8
  for family in FAMILIES:
    for rules in MESHES:
      check_shardings(family, rules)
  print("factors are split as their kernels", flush=True)
  for family, rule_sets in (("Llama", MESHES), ("T5", ("fsdp_tp",))):
    for rules in rule_sets:
      np.testing.assert_allclose(losses(family, rules), losses(family, ""), rtol=1e-4, err_msg=f"{family}, {rules}")
      print("same loss of LoRA in", family, "under", rules, flush=True)
  assert losses("Llama", "")[0] - losses("Llama", "")[2] > 1e-3


if __name__ == "__main__":
  main()
