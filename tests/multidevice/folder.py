"""Run by test_rules.py with eight simulated devices: each reads its own part of a Hugging Face folder, no more."""

import tempfile
import unittest.mock

import jax
import jax.numpy as jnp
import numpy as np

from lmjax import storage
from lmjax.parallel.sharding import Layout, use_layout
from lmjax.storage import huggingface
from lmjax.storage.lazy import LazyTensor
from lmjax.testing import init_params
from lmjax.utils import pytree
from tests.families import tiny_task
from tests.multidevice.rules import MESHES


def main():
  assert jax.device_count() == 8
  with tempfile.TemporaryDirectory() as folder:
    model, batch = tiny_task("Llama").model, {"inputs": jnp.arange(16)[None]}
    params = init_params(model, batch)["params"]
    huggingface.save(f"{folder}/llama", model, {"model": params, "heads": {}})
    saved, layout = storage.open(f"{folder}/llama"), Layout.build(MESHES["fsdp_tp"].build(), "fsdp_tp")
    read, getitem = [], LazyTensor.__getitem__

    def watched(mapped, index):
      part = getitem(mapped, index)
      read.append((mapped, part.shape))
      return part

    with unittest.mock.patch.object(LazyTensor, "__getitem__", watched):
      sharded = saved.arrays(saved.named, layout)
    for name, leaf in pytree.named_leaves(sharded).items():
      mapped = saved.parameters()[name]
      shapes = {shape for other, shape in read if other is mapped}
      assert shapes == {leaf.sharding.shard_shape(leaf.shape)}, name
    assert not sharded["model"]["stack"]["layers"]["mlp"]["up"]["kernel"].is_fully_replicated
    with use_layout(layout):
      hidden = jax.jit(lambda params: model.apply({"params": params}, batch))(sharded["model"])
    np.testing.assert_allclose(hidden.tokens, model.apply({"params": params}, batch).tokens, atol=2e-5)
  print("each device read its own part", flush=True)


if __name__ == "__main__":
  main()
