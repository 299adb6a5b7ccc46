"""The decoding of a saved model on a device that is not available: its memory, and the time of reading it."""

import functools
import time
from typing import Any

import jax
import jax.numpy as jnp

from lmjax.decode.sample import prefill
from lmjax.evals.samples import generates
from lmjax.parallel.mesh import MeshShape
from lmjax.parallel.sharding import Layout, is_partitioned, use_layout
from lmjax.planning.aot import Topology, compile_step
from lmjax.storage.base import SavedModel, replace_dtype
from lmjax.tasks.base import Task
from lmjax.utils.errors import UserError
from lmjax.utils.pytree import Tree

SOURCE = 512  # tokens that an encoder has read, at most


def decoding_report(saved: SavedModel, target: Topology, batch: int, length: int) -> dict[str, Any]:
  """Returns the memory of one greedy token of each row, in bfloat16, and the time of reading it once.

  `seconds` is the time in which the device reads all weights, as they are stored, and the cache; of a mixture of
  experts, all experts. `accessed` are the bytes that the operations of the compiled program read and write, in any
  memory of the device; a copy between two counts, too.

  Args:
    target: a single device.
    batch: rows.
    length: tokens that the cache holds; 0 is the longest input of the model.

  Raises:
    UserError: the model does not generate text, or not so much, or the target has several devices.
  """
  if target.count > 1:
    raise UserError(f"plan: the decoding of a saved model is planned on one device, not {target.count}; write v5e:1x1")
  if not generates(saved.task):
    raise UserError(f"plan: {saved.path} does not generate text; give --config for its training step")
  start, task, params = time.perf_counter(), replace_dtype(saved.task, "bfloat16"), _parameters(saved)
  model, longest = task.model, task.model.config.length
  if length > longest and not hasattr(model.config, "cells"):
    raise UserError(f"plan: this model continues up to {longest} tokens, not the {length} of --length")
  length = length or longest
  devices = target.devices() if target.compiles else jax.devices("cpu")[:1]
  layout = Layout.build(MeshShape().build(devices), "ddp")
  shape = lambda tree: jax.tree.map(  # noqa: E731
    lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=layout.sharding()), tree
  )
  tokens, valid = jax.ShapeDtypeStruct((batch, 1), jnp.int32), jax.ShapeDtypeStruct((batch, 1), jnp.bool_)
  read = min(SOURCE, longest) if model.kind == "encoder_decoder" else 0
  source = [jax.ShapeDtypeStruct((batch, read), kind) for kind in (jnp.int32, jnp.bool_)] if read else None
  with use_layout(layout):
    params = jax.eval_shape(lambda params: model.decode_layout(task.compute(params)), params)
    read_prompt = functools.partial(prefill, model, max_tokens=length)
    _, cache = jax.eval_shape(read_prompt, params, tokens, valid, source=source)
    arguments = [shape(tree) for tree in (params, cache, tokens, valid)]
    sizes = {"weights": _bytes(arguments[0]), "cache": _bytes(arguments[1])}
    fits, accessed = True, None
    if target.compiles:
      lowered = jax.jit(_next(task), donate_argnums=1, keep_unused=True).lower(*arguments)
      compiled = compile_step(lowered, target.chip.memory, 1, start)
      fits = compiled.fits
      if compiled.arguments:  # 0 where it does not fit
        sizes["weights"], accessed = compiled.arguments - sizes["cache"], compiled.accessed
      sizes["temporaries"] = max(compiled.total - compiled.output - sizes["weights"] - sizes["cache"], 0)
  chip, kept = target.chip, sizes["weights"] + sizes["cache"]
  grows = any(length in leaf.shape for leaf in jax.tree.leaves(cache))
  report = {"topology": target.name, "batch": batch, "length": length if grows else None, "source": read or None}
  report |= {"method": "compiled" if target.compiles else "counted", "bytes": sizes, "total": sum(sizes.values())}
  report |= {"accessed": accessed, "seconds": kept / chip.bandwidth if chip else None, "capacity": chip and chip.memory}
  return report | {"fits": fits and (not chip or report["total"] <= chip.memory)}


def _parameters(saved: SavedModel) -> Tree:
  """Returns the parameters of a saved model as they are stored; abstract, unless it is quantized."""
  if getattr(saved, "quantized", False):
    return saved.load().params
  return jax.tree.map(lambda box: box.value, saved.named, is_leaf=is_partitioned)


def _bytes(tree: Tree) -> int:
  """Returns the bytes of abstract arrays; two int4 are one byte."""
  bits = (leaf.size * (4 if leaf.dtype == jnp.int4 else 8 * leaf.dtype.itemsize) for leaf in jax.tree.leaves(tree))
  return sum(bits) // 8


def _next(task: Task) -> Any:
  """Returns the function of parameters, cache and tokens to the next tokens and the longer cache."""

  def step(params: Tree, cache: Tree, tokens: jax.Array, valid: jax.Array) -> tuple[jax.Array, Tree]:
    hidden, cache = task.model.apply({"params": params}, cache, tokens, valid, method="extend")
    return jnp.argmax(task.model.apply({"params": params}, hidden[:, -1], method="logits"), axis=-1), cache

  return step
