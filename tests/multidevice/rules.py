"""Run by test_rules.py in a process of eight simulated devices: every rule set against a single device.

Names of families among the arguments are checked under every rule set; without any, GPT under every one and Llama under
the one that splits most.
"""

import sys

import jax
import jax.numpy as jnp
import numpy as np

from lmjax.compression.base import Identity
from lmjax.layers.kernels.dispatch import attend
from lmjax.layers.kernels.mask import Mask
from lmjax.layers.kernels.splash import splash
from lmjax.models.base import Table
from lmjax.optim import Optimizer
from lmjax.parallel.mesh import MeshShape
from lmjax.parallel.sharding import Layout, constrain, use_layout
from lmjax.planning.aot import collectives
from lmjax.tasks.log_probs import token_log_probs
from lmjax.tasks.losses import cross_entropy
from lmjax.testing import fake_batch, init_state
from lmjax.train import make_step
from lmjax.utils import pytree
from tests.families import tiny_task

MESHES = {
  "ddp": MeshShape(data=8),
  "fsdp": MeshShape(data=2, fsdp=4),
  "tp": MeshShape(data=2, model=4),
  "fsdp_tp": MeshShape(data=2, fsdp=2, model=2),
  "sequence": MeshShape(data=2, sequence=4),
}
EVERY = sys.argv[1:]


def losses(layout, family, microbatches=1):
  """Returns the losses of three steps and the final state."""
  task = tiny_task(family, dropout=0.1)
  optimizer = Optimizer(peak_lr=1e-2, microbatches=microbatches)
  with use_layout(layout):
    state = init_state(task, optimizer.build(10), Identity(), layout, 16, 16, 0)
    step = jax.jit(make_step(task, optimizer.build(10), Identity(), microbatches), donate_argnums=0)
    batch = fake_batch(task, 16, 16)
    batch = jax.device_put(batch, layout.batch(batch))
    values = []
    for _ in range(3):
      state, metrics = step(state, batch, jax.random.key(1))
      values.append(metrics["loss"].value())
  return values, state


def split(state, wanted):
  """Returns whether parameter and both moments are stored in parts of their own."""
  leaves = {name: leaf for name, leaf in pytree.named_leaves(state).items() if name.endswith(wanted)}
  assert len(leaves) == 3, list(leaves)
  return [leaf.addressable_shards[0].data.size < leaf.size for leaf in leaves.values()]


def check_splash():
  """The kernel under a mesh, rows, heads and queries each on devices of their own, is attention on one device."""
  rng = np.random.default_rng(0)
  q, k, v = (jnp.asarray(rng.normal(size=(4, 512, heads, 64)), jnp.float32) for heads in (4, 2, 2))
  mask = Mask(jnp.asarray(np.repeat([[1, 2, 2, 3]] * 4, 128, axis=1)), causal=True, window=200)
  wanted = attend(q, k, v, mask)
  both = (("batch", ("data",)), ("length", ("sequence",)), ("heads", ("model",)), ("kv_heads", ("model",)))
  for rules in (both, both[:3], both[:2]):  # groups split as the heads are, or not split, or neither
    mesh = MeshShape(data=2, sequence=2, model=2) if len(rules) > 2 else MeshShape(data=4, sequence=2)
    layout = Layout.build(mesh.build(), rules)
    with use_layout(layout):
      o = jax.jit(lambda q, k, v: splash(q, k, v, mask, interpret=True))(q, k, v)
    np.testing.assert_allclose(o, wanted, atol=2e-5)
  print("splash under a mesh", flush=True)


def check_chunks():
  """The table's gradient is that of one device, and devices add it up once, not after each chunk of the loss."""
  rng = np.random.default_rng(0)
  x, table = (jnp.asarray(rng.normal(size=size), jnp.float32) for size in ((16, 32, 24), (128, 24)))
  targets, weights = jnp.asarray(rng.integers(0, 100, (16, 32))), jnp.ones((16, 32))

  def gradients(layout, chunk):
    with use_layout(layout):
      loss = lambda x, table: cross_entropy(x, Table(table), targets, weights, 100, 1e-3, chunk)[0]  # noqa: E731
      spec = (layout.sharding("batch", None, None), layout.sharding("vocabulary", "width", shape=table.shape))
      step = jax.jit(jax.grad(loss, (0, 1)), in_shardings=spec, out_shardings=spec).lower(x, table).compile()
      return step(*jax.device_put((x, table), spec)), collectives(step.as_text()).get("all-reduce", {"bytes": 0})

  wanted, _ = gradients(alone(), 4)
  for rules in MESHES:
    layout = Layout.build(MESHES[rules].build(), rules)
    (found, few), (_, many) = (gradients(layout, chunk) for chunk in (16, 4))
    for a, b in zip(wanted, found, strict=True):
      np.testing.assert_allclose(a, b, rtol=2e-5, atol=2e-6, err_msg=rules)
    if rules in ("ddp", "fsdp"):  # elsewhere the scores of a chunk are added up, too
      assert many["bytes"] <= few["bytes"], (rules, few, many)
  print("one sum for all chunks", flush=True)

  def log_probs(layout):
    with use_layout(layout):
      total = lambda x, table: jnp.sum(token_log_probs(x, Table(table), targets, 100))  # noqa: E731
      spec = (layout.sharding("batch", None, None), layout.sharding("vocabulary", "width", shape=table.shape))
      step = jax.jit(jax.grad(total, (0, 1)), in_shardings=spec, out_shardings=spec).lower(x, table).compile()
      return step(*jax.device_put((x, table), spec)), collectives(step.as_text())

  wanted, _ = log_probs(alone())
  for rules in MESHES:
    found, moved = log_probs(Layout.build(MESHES[rules].build(), rules))
    for a, b in zip(wanted, found, strict=True):
      np.testing.assert_allclose(a, b, rtol=2e-5, atol=2e-6, err_msg=rules)
    assert rules != "ddp" or "all-gather" not in moved, "a device reads the rows of no other"
  print("each device scores its own rows", flush=True)


def check_families(names):
  for name in names:
    wanted, _ = losses(alone(), name)
    for rules in MESHES:
      values, _ = losses(Layout.build(MESHES[rules].build(), rules), name)
      np.testing.assert_allclose(values, wanted, rtol=2e-5, err_msg=f"{name}, {rules}")
      print("same loss of", name, "under", rules, flush=True)
  wanted, _ = losses(alone(), "Llama")
  for rules, axis, count in (("ddp", "data", 2), ("fsdp", "fsdp", 4), ("tp", "model", 2), ("sequence", "sequence", 4)):
    mesh = MeshShape(**({"data": 1} | {axis: count})).build(jax.devices()[:count])
    values, _ = losses(Layout.build(mesh, rules), "Llama")
    np.testing.assert_allclose(values, wanted, rtol=2e-5, err_msg=f"{rules} on {count}")
    print("same loss under", rules, "on", count, "devices", flush=True)


def alone() -> Layout:
  """Returns the layout of a single device."""
  return Layout.build(MeshShape().build(jax.devices()[:1]), "ddp")


def main():
  assert jax.device_count() == 8
  if EVERY:
    check_families(EVERY)
  else:
    check_decoders()


def check_decoders():
  for family, rule_sets in (("GPT", MESHES), ("Llama", ("fsdp_tp",))):
    wanted, _ = losses(alone(), family)
    for rules in rule_sets:
      values, state = losses(Layout.build(MESHES[rules].build(), rules), family)
      np.testing.assert_allclose(values, wanted, rtol=2e-5, err_msg=rules)
      assert split(state, "mlp/up/kernel") == [rules != "ddp"] * 3, rules
      assert split(state, "model/embed/table") == [rules != "ddp"] * 3, rules
      print("same loss under", rules, values, flush=True)
  check_splash()
  check_chunks()
  accumulated, _ = losses(Layout.build(MESHES["fsdp"].build(), "fsdp"), "Llama", microbatches=2)
  assert abs(accumulated[0] - wanted[0]) < 0.2, "other dropout, the same loss but for it"

  layout = Layout.build(MESHES["fsdp_tp"].build(), "fsdp_tp")
  with use_layout(layout):
    placed = jax.jit(lambda x: constrain(x, "batch", None, "mlp"))(np.zeros((8, 4, 16), np.float32))
  assert placed.sharding.shard_shape(placed.shape) == (2, 4, 8), "constrain bites"
  assert layout.spec("width", "heads", "head", shape=(32, 3, 8))[1] is None, "3 heads do not divide: replicated"


if __name__ == "__main__":
  main()
