"""Run by test_rules.py in a process of eight simulated devices: mixtures of experts against a single device."""

import jax
import numpy as np

from lmjax.compression.base import Identity
from lmjax.optim import Optimizer
from lmjax.parallel.mesh import MeshShape
from lmjax.parallel.sharding import Layout, use_layout
from lmjax.state import named_parameters
from lmjax.testing import fake_batch, init_state
from lmjax.train import make_step
from lmjax.utils import pytree
from tests.families import tiny_expert_lm
from tests.multidevice.rules import alone

# (mesh, rules, experts): the experts split, with all that splits the rest; and 3 of them, which 4 do not divide.
MESHES = (
  (MeshShape(expert=4), "ddp", 4),
  (MeshShape(data=1, fsdp=2, expert=2, model=2), "fsdp_tp", 4),
  (MeshShape(data=1, sequence=2, expert=4), "sequence", 4),
  (MeshShape(data=2, expert=4), "fsdp", 3),
)


def losses(layout, experts):
  """Returns the losses and metrics of two steps, and the final state."""
  task = tiny_expert_lm(experts=experts)
  optimizer = Optimizer(peak_lr=1e-2)
  with use_layout(layout):
    state = init_state(task, optimizer.build(10), Identity(), layout, 8, 16, 0)
    step = jax.jit(make_step(task, optimizer.build(10), Identity()), donate_argnums=0)
    batch = fake_batch(task, 8, 16)
    batch = jax.device_put(batch, layout.batch(batch))
    values = []
    for _ in range(2):
      state, metrics = step(state, batch, jax.random.key(1))
      values.append([metrics[name].value() for name in ("loss", "balance", "router_z", "expert_0")])
      values[-1].append(float(metrics["gradient_norm"]))
  return values, state, task


def main():
  assert jax.device_count() == 8
  wanted = {experts: losses(alone(), experts)[0] for experts in (4, 3)}
  for mesh, rules, experts in MESHES:
    layout = Layout.build(mesh.build(), rules)
    values, state, task = losses(layout, experts)
    np.testing.assert_allclose(values, wanted[experts], rtol=5e-5, err_msg=f"{mesh} {rules}")
    kernel = pytree.named_leaves(state.params)["model/stack/layers/mlp/up/kernel"]
    shard = kernel.addressable_shards[0].data.shape
    lines = [line for line in layout.replicated(named_parameters(task, 8, 16)) if "'experts'" in line]
    if experts == 4:
      assert shard[1] == experts // mesh.expert and not lines, (shard, lines)
    else:
      assert shard[1] == experts and len(lines) == 3, (shard, lines)
    print("same loss of experts under", rules, "kernels in parts of", shard, flush=True)


if __name__ == "__main__":
  main()
