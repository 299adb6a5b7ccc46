"""The decoding of a saved model on a device that is not available: memory, and the least time of a token."""

import functools
import time
from typing import Any

import jax
import jax.numpy as jnp

from lmjax.decode.sample import prefill
from lmjax.parallel.mesh import MeshShape
from lmjax.parallel.sharding import Layout, use_layout
from lmjax.planning.aot import Topology, compile_step
from lmjax.storage.base import SavedModel
from lmjax.utils.errors import UserError
from lmjax.utils.pytree import Tree

SOURCE = 512  # tokens that an encoder has read


def decoding_report(saved: SavedModel, target: Topology, batch: int, length: int) -> dict[str, Any]:
  """Returns the memory and the least seconds of one greedy token of each row, in bfloat16.

  The least time is that of reading the weights, as they are stored, and the cache once. `accessed` are the bytes that
  the operations of the compiled program read and write, in any memory of the device; a copy between two counts, too.

  Args:
    target: a single device.
    batch: rows.
    length: slots of the cache; 0 is the longest input of the model.

  Raises:
    UserError: the model is an encoder, or the target has several devices.
  """
  if target.count > 1:
    raise UserError(f"plan: the decoding of a saved model is planned on one device, not {target.count}; write v5e:1x1")
  if saved.task.model.kind == "encoder":
    raise UserError(f"plan: {saved.path} is an encoder, which generates nothing; give --config instead")
  start, loaded = time.perf_counter(), saved.load(dtype="bfloat16")
  model, length = loaded.task.model, length or loaded.length
  devices = target.devices() if target.compiles else jax.devices("cpu")[:1]
  layout = Layout.build(MeshShape().build(devices), "ddp")
  shape = lambda tree: jax.tree.map(  # noqa: E731
    lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=layout.sharding()), tree
  )
  tokens, valid = jax.ShapeDtypeStruct((batch, 1), jnp.int32), jax.ShapeDtypeStruct((batch, 1), jnp.bool_)
  source = [jax.ShapeDtypeStruct((batch, SOURCE), kind) for kind in (jnp.int32, jnp.bool_)]
  with use_layout(layout):
    params = jax.eval_shape(lambda params: model.decode_layout(loaded.task.compute(params)), loaded.params)
    given = source if model.kind == "encoder_decoder" else None
    read = functools.partial(prefill, model, max_tokens=length)
    cache = jax.eval_shape(read, params, tokens, valid, source=given)[1]
    arguments = [shape(tree) for tree in (params, cache, tokens, valid)]
    sizes = {"weights": _bytes(arguments[0]), "cache": _bytes(arguments[1])}
    report = {"topology": target.name, "batch": batch, "length": length, "bytes": sizes, "accessed": None}
    if target.compiles:
      lowered = jax.jit(_next(model), donate_argnums=1).lower(*arguments)
      compiled = compile_step(lowered, target.chip.memory, 1, start)
      sizes |= {"weights": compiled.arguments - sizes["cache"], "temporaries": compiled.temporaries}
      report["accessed"] = compiled.accessed
  chip, read = target.chip, sizes["weights"] + sizes["cache"]
  report |= {"method": "compiled" if target.compiles else "counted", "total": sum(sizes.values())}
  report |= {"seconds_per_token": read / chip.bandwidth if chip else None}
  return report | {"capacity": chip and chip.memory, "fits": not chip or report["total"] <= chip.memory}


def _bytes(tree: Tree) -> int:
  """Returns the bytes of abstract arrays; two int4 are one byte."""
  return (
    sum(leaf.size * (4 if leaf.dtype == jnp.int4 else 8 * leaf.dtype.itemsize) for leaf in jax.tree.leaves(tree)) // 8
  )


def _next(model: Any) -> Any:
  """Returns the function of parameters, cache and tokens to the next tokens and the longer cache."""

  def step(params: Tree, cache: Tree, tokens: jax.Array, valid: jax.Array) -> tuple[jax.Array, Tree]:
    hidden, cache = model.apply({"params": params}, cache, tokens, valid, method="extend")
    return jnp.argmax(model.apply({"params": params}, hidden[:, -1], method="logits"), axis=-1), cache

  return step
