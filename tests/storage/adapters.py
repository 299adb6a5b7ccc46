"""A tiny model of a Hugging Face family with random factors, for tests of adapters."""

import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lmjax.compression.lora import LoRA
from lmjax.parallel.sharding import LogicallyPartitioned
from lmjax.state import named_parameters
from lmjax.storage import huggingface
from lmjax.storage.huggingface.folder import task_of
from lmjax.storage.huggingface.save_adapter import write_adapter
from lmjax.utils import pytree


def random_adapter(folder: pathlib.Path, base: pathlib.Path, lora: LoRA) -> dict[str, Any]:
  """Writes an adapter with random factors for a base, and returns the parameters of the merged model."""
  loaded = huggingface.load(base)
  task, params = task_of(loaded), loaded.arrays()
  named = named_parameters(task, 1, 8)
  if "unembed" not in params["model"]:
    named["model"].pop("unembed", None)
  flat = pytree.named_leaves(params)
  boxes = jax.tree_util.tree_map_with_path(
    lambda path, box: box.replace(value=jnp.asarray(flat[pytree.name(path)])), named,
    is_leaf=lambda leaf: isinstance(leaf, LogicallyPartitioned),
  )  # fmt: skip
  trained, _, frozen = (jax.tree.map(lambda box: box.value, tree, is_leaf=lambda leaf: isinstance(
    leaf, LogicallyPartitioned)) for tree in lora.init(boxes))  # fmt: skip
  rng = np.random.default_rng(0)
  noise = lambda x: x + 0.1 * rng.standard_normal(x.shape).astype(np.float32)  # noqa: E731
  trained = jax.tree.map(noise, trained)
  write_adapter(folder, base, loaded.model, flat, pytree.named_leaves(trained), lora)
  return pytree.named_leaves(lora.merge(trained, {}, frozen))
