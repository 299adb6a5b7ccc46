"""Which values of a kernel are removed: scores and structures, as functions of arrays."""

import math
import re
import zlib

import jax
import jax.numpy as jnp

from lmjax.compression.lora import first_output, stacked_axes
from lmjax.utils.errors import UserError

STRUCTURES = ("layer", "output", "global")  # what is compared, besides N:M


def check(sparsity: float, structure: str) -> None:
  """Raises ValueError for a sparsity or a structure that no mask can have."""
  if not 0 <= sparsity < 1:
    raise ValueError(f"the sparsity is at least 0 and below 1, not {sparsity}")
  kept, of = kept_of(structure)
  if structure not in STRUCTURES and not 0 < kept < of:
    raise ValueError(
      f"the structure is {', '.join(STRUCTURES)} or N:M, such as 2:4 with N of M kept, not {structure!r}"
    )


def kept_of(structure: str) -> tuple[int, int]:
  """Returns N and M of the structure N:M; zeros for another structure."""
  match = re.fullmatch(r"(\d{1,3}):(\d{1,3})", structure)
  return (int(match[1]), int(match[2])) if match else (0, 0)


def matrices(array: jax.Array, names: tuple[str | None, ...]) -> jax.Array:
  """Returns a kernel as [layers, inputs, outputs]; one layer where it is not stacked, each expert as one."""
  stacked, split = stacked_axes(names), first_output(names)
  return array.reshape(math.prod(array.shape[:stacked]), math.prod(array.shape[stacked:split]), -1)


def lowest(scores: jax.Array, count: int | jax.Array, axis: int) -> jax.Array:
  """Returns where the `count` lowest scores along an axis are, exactly so many; of equal ones, the first."""
  ordered = jnp.sort(scores, axis)
  limit = jnp.take(ordered, jnp.maximum(count - 1, 0), axis)
  limit = jnp.expand_dims(limit, axis)
  below, equal = scores < limit, scores == limit
  left = count - jnp.sum(below, axis, keepdims=True)
  return (below | (equal & (jnp.cumsum(equal, axis) <= left))) & (jnp.asarray(count) > 0)


def removed(scores: jax.Array, names: tuple[str | None, ...], structure: str, sparsity: float | jax.Array) -> jax.Array:
  """Returns where a kernel loses its values: its lowest scores, as many as the sparsity says, rounded.

  Args:
    structure: `layer` compares all values of a layer, `output` those of one output, and N:M keeps N of every M
      consecutive inputs of an output, whatever the sparsity.

  Raises:
    UserError: M does not divide the inputs.
  """
  x = matrices(scores, names)
  layers, inputs, outputs = x.shape
  kept, of = kept_of(structure)
  if of:
    if inputs % of:
      raise UserError(f"prune: {structure} does not divide the {inputs} inputs of a kernel of shape {scores.shape}")
    lost = lowest(x.reshape(layers, inputs // of, of, outputs), of - kept, 2)
  elif structure == "output":
    lost = lowest(x, _count(sparsity, inputs), 1)
  else:
    lost = lowest(x.reshape(layers, -1), _count(sparsity, inputs * outputs), 1)
  return lost.reshape(scores.shape)


def removed_globally(scores: dict[str, jax.Array], sparsity: float | jax.Array) -> dict[str, jax.Array]:
  """Returns where kernels lose their values: the lowest scores of all of them together."""
  flat = jnp.concatenate([score.reshape(-1) for score in scores.values()])
  lost, masks, start = lowest(flat, _count(sparsity, flat.size), 0), {}, 0
  for name, score in scores.items():
    masks[name] = lost[start : start + score.size].reshape(score.shape)
    start += score.size
  return masks


def _count(sparsity: float | jax.Array, size: int) -> int | jax.Array:
  if isinstance(sparsity, jax.Array):
    return jnp.round(sparsity * size).astype(jnp.int32)
  return round(sparsity * size)


def random_scores(name: str, shape: tuple[int, ...], seed: int) -> jax.Array:
  """Returns scores that do not depend on the weights, the same for a name and a seed."""
  return jax.random.uniform(jax.random.fold_in(jax.random.key(seed), zlib.crc32(name.encode())), shape)
