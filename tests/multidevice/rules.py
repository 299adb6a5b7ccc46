"""Run by test_rules.py in a process of eight simulated devices: every rule set against a single device.

Names of families among the arguments are checked under every rule set; without any, GPT under every one and Llama under
the one that splits most.
"""

import sys
import tempfile
import unittest.mock

import jax
import jax.numpy as jnp
import numpy as np

from lmjax import storage
from lmjax.compression.base import Identity
from lmjax.layers.kernels.dispatch import attend
from lmjax.layers.kernels.mask import Mask
from lmjax.layers.kernels.splash import splash
from lmjax.layers.positions import Rotary
from lmjax.models import elmo, encoder_decoder, recurrent
from lmjax.models.elmo import ELMo
from lmjax.models.encoder import Config as EncoderConfig
from lmjax.models.encoder import Encoder
from lmjax.models.encoder_decoder import EncoderDecoder
from lmjax.models.recurrent import Recurrent
from lmjax.optim import Optimizer
from lmjax.parallel.mesh import MeshShape
from lmjax.parallel.sharding import Layout, constrain, use_layout
from lmjax.state import init_state
from lmjax.storage import huggingface
from lmjax.storage.lazy import LazyTensor
from lmjax.tasks.bidirectional_lm import BidirectionalLM
from lmjax.tasks.causal_lm import CausalLM
from lmjax.tasks.masked_lm import MaskedLM
from lmjax.tasks.seq2seq import Seq2Seq
from lmjax.testing import fake_batch, init_params, tiny_decoder
from lmjax.train import make_step
from lmjax.utils import pytree

MESHES = {
  "ddp": MeshShape(data=8),
  "fsdp": MeshShape(data=2, fsdp=4),
  "tp": MeshShape(data=2, model=4),
  "fsdp_tp": MeshShape(data=2, fsdp=2, model=2),
  "sequence": MeshShape(data=2, sequence=4),
}
BERT = dict(vocabulary=50, length=16, width=32, depth=3, heads=4, head_size=8, mlp=64, dropout=0.1)
LLAMA = dict(rotary=Rotary(), norm="rms", activation="silu", gated_mlp=True, bias=False, tie_embeddings=False)


LSTM = dict(vocabulary=50, length=16, width=32, cells=64, dropout=0.1)
ELMO = dict(vocabulary=50, length=16, width=32, cells=64, embedding=8, filters=((1, 16), (2, 16)), highways=1)
T5 = dict(vocabulary=50, length=16, width=32, depth=2, heads=4, head_size=8, mlp=64, dropout=0.1)
WAVES = dict(positions="sinusoidal", norm="layer", post_norm=True, bias=True, scale_scores=True)
EVERY = sys.argv[1:]
OTHERS = {
  "BERT": MaskedLM(Encoder(EncoderConfig(**BERT)), max_predictions=4),
  "LSTM": CausalLM(Recurrent(recurrent.Config(**LSTM))),
  "ELMo": BidirectionalLM(ELMo(elmo.Config(**ELMO)), characters=8),
  "T5": Seq2Seq(EncoderDecoder(encoder_decoder.Config(**T5)), target_length=8),
  "Llama": CausalLM(tiny_decoder(dropout=0.1, **LLAMA)),
  "Transformer": Seq2Seq(EncoderDecoder(encoder_decoder.Config(**(T5 | WAVES))), smoothing=0.1),
}


def losses(layout, changes, microbatches=1):
  """Returns the losses of three steps and the final state."""
  task = CausalLM(tiny_decoder(dropout=0.1, **changes)) if isinstance(changes, dict) else changes
  optimizer = Optimizer(peak_lr=1e-2, microbatches=microbatches)
  with use_layout(layout):
    state = init_state(task, optimizer.build(10), Identity(), layout, 16, 16, 0)
    step = jax.jit(make_step(task, optimizer.build(10), Identity(), microbatches), donate_argnums=0)
    batch = fake_batch(task, 16, 16)
    batch = jax.device_put(batch, layout.batch(batch))
    found = []
    for _ in range(3):
      state, metrics = step(state, batch, jax.random.key(1))
      found.append(metrics["loss"].value())
  return found, state


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
      found = jax.jit(lambda q, k, v: splash(q, k, v, mask, interpret=True))(q, k, v)
    np.testing.assert_allclose(found, wanted, atol=2e-5)
  print("splash under a mesh", flush=True)


def check_a_folder():
  """A Hugging Face folder is loaded onto a mesh, where each device reads its own slice of the files."""
  with tempfile.TemporaryDirectory() as folder:
    model, ids = tiny_decoder(**LLAMA), jnp.arange(16)[None]
    params = init_params(model, ids)["params"]
    huggingface.save(f"{folder}/llama", model, {"model": params, "heads": {}})
    saved, layout = storage.open(f"{folder}/llama"), Layout.build(MESHES["fsdp_tp"].build(), "fsdp_tp")
    read, honest = [], LazyTensor.__getitem__

    def watched(mapped, index):
      found = honest(mapped, index)
      read.append((mapped, found.shape))
      return found

    with unittest.mock.patch.object(LazyTensor, "__getitem__", watched):
      placed = saved.arrays(saved.named, layout)
    for name, leaf in pytree.named_leaves(placed).items():
      mapped = saved.parameters()[name]
      shapes = {shape for other, shape in read if other is mapped}
      assert shapes == {leaf.sharding.shard_shape(leaf.shape)}, name
    assert not placed["model"]["stack"]["layers"]["mlp"]["up"]["kernel"].is_fully_replicated
    with use_layout(layout):
      found = jax.jit(lambda params: model.apply({"params": params}, ids)[0])(placed["model"])
    np.testing.assert_allclose(found, model.apply({"params": params}, ids)[0], atol=2e-5)
  print("each device read its own part", flush=True)


def check_families(names):
  for name in names:
    wanted, _ = losses(alone(), OTHERS[name])
    for rules in MESHES:
      found, _ = losses(Layout.build(MESHES[rules].build(), rules), OTHERS[name])
      np.testing.assert_allclose(found, wanted, rtol=2e-5, err_msg=f"{name}, {rules}")
      print("same loss of", name, "under", rules, flush=True)
  wanted, _ = losses(alone(), LLAMA)
  for rules, axis, count in (("ddp", "data", 2), ("fsdp", "fsdp", 4), ("tp", "model", 2), ("sequence", "sequence", 4)):
    mesh = MeshShape(**({"data": 1} | {axis: count})).build(jax.devices()[:count])
    found, _ = losses(Layout.build(mesh, rules), LLAMA)
    np.testing.assert_allclose(found, wanted, rtol=2e-5, err_msg=f"{rules} on {count}")
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
    check_a_folder()


def check_decoders():
  for changes in ({}, LLAMA):
    wanted, _ = losses(alone(), changes)
    for rules in MESHES if not changes else ("fsdp_tp",):
      mesh = MESHES[rules]
      found, state = losses(Layout.build(mesh.build(), rules), changes)
      np.testing.assert_allclose(found, wanted, rtol=2e-5, err_msg=rules)
      assert split(state, "mlp/up/kernel") == [rules != "ddp"] * 3, rules
      assert split(state, "model/embed/table") == [rules != "ddp"] * 3, rules
      print("same loss under", rules, found, flush=True)
  check_splash()
  accumulated, _ = losses(Layout.build(MESHES["fsdp"].build(), "fsdp"), LLAMA, microbatches=2)
  assert abs(accumulated[0] - wanted[0]) < 0.2, "other dropout, the same loss but for it"

  layout = Layout.build(MESHES["fsdp_tp"].build(), "fsdp_tp")
  with use_layout(layout):
    placed = jax.jit(lambda x: constrain(x, "batch", None, "mlp"))(np.zeros((8, 4, 16), np.float32))
  assert placed.sharding.shard_shape(placed.shape) == (2, 4, 8), "constrain bites"
  assert layout.spec("width", "heads", "head", shape=(32, 3, 8))[1] is None, "3 heads do not divide: replicated"


if __name__ == "__main__":
  main()
