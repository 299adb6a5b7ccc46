"""Structured pruning: heads, MLP units, layers or channels leave a model, which becomes a smaller dense one."""

import dataclasses
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import traverse_util

from lmjax.compression import masks
from lmjax.compression.lora import first_output
from lmjax.compression.quantize import QTensor
from lmjax.parallel.sharding import LogicallyPartitioned, is_partitioned
from lmjax.tasks.base import Task, weighted_sum
from lmjax.utils import pytree
from lmjax.utils.errors import UserError
from lmjax.utils.pytree import Tree

# And the field of a config that counts them.
STRUCTURES = {"heads": "heads", "mlp": "mlp", "layers": "depth", "width": "width"}
AXES = {"heads": ("heads", "kv_heads"), "mlp": ("mlp",), "layers": ("layers",), "width": ("width",)}
SCORES = ("magnitude", "random", "taylor")
Boxes = Mapping[str, LogicallyPartitioned]
Batch = Mapping[str, jax.Array]


@dataclasses.dataclass(frozen=True)
class Remove:
  """The units with the lowest scores leave each layer, the same number everywhere, so that layers still stack.

    magnitude: the norm of a unit's weights.  random: a control.
    taylor: mean over batches |sum of gradient * weight| over the weights that read the unit

  The Taylor score is |dL / d xi|, xi a factor of what the unit gives (Michel et al., 2019, arXiv:1905.10650; Molchanov
  et al., 2017, arXiv:1611.06440).

  structure: `heads`, with grouped queries all heads that share keys and values; `mlp`, units of MLPs; `layers`, of each
  stack; or `width`, channels of the vectors that layers pass on, the same ones everywhere. fraction: of the units,
  rounded. Where heads have a bias of positions that all layers share, as in T5, the same heads leave in all layers.
  Norms compute their mean and size from the channels that stay, so a narrower model needs training.
  """

  structure: str
  fraction: float
  score: str = "magnitude"
  seed: int = 0

  def __post_init__(self):
    if self.structure not in STRUCTURES:
      raise ValueError(f"what is removed is {', '.join(STRUCTURES)}, not {self.structure!r}")
    if self.score not in SCORES:
      raise ValueError(f"the score is one of {', '.join(SCORES)}, not {self.score!r}")
    if not 0 <= self.fraction < 1:
      raise ValueError(f"the fraction is at least 0 and below 1, not {self.fraction}")

  @property
  def needs_batches(self) -> bool:
    """Whether it looks at gradients of the task's loss."""
    return self.score == "taylor"

  def apply(self, task: Task, params: Boxes, batches: Iterable[Batch] = ()) -> tuple[dict[str, Any], dict[str, Any]]:
    """Returns the settings of the model's config that change, and its parameters by path names.

    Args:
      task: the model computes in float32.
      params: arrays with their axis names, by path names.
      batches: of the task, for Taylor scores.

    Raises:
      UserError: the model lacks the structure or would lose all of it, or is quantized.
    """
    config = task.model.config
    if any(isinstance(box.value, QTensor) for box in params.values()):
      raise UserError("remove: the model is quantized; remove what is not needed before it is quantized")
    self._check(config, params)
    groups = self._groups(params)
    scores = self._scores(task, params, groups, batches)
    kept = {group: self._keep(score) for group, score in scores.items()}
    if all(kept[group].shape[1] == scores[group].shape[1] for group in kept):
      raise UserError(f"remove: {self.fraction} of the {self.structure} of this model removes none")
    arrays = {name: box.value for name, box in params.items()}
    units = self._units(config)
    for group, names in groups.items():
      arrays |= {name: _slice(params[name], self._axes(name, params[name]), kept[group], units) for name in names}
    changes = self._changes(config, kept)
    if self.structure == "width" and _scales_scores(config):  # so that they keep their size
      last = {name: x for name, x in arrays.items() if name.startswith("model/decoder_norm/")}
      arrays |= {name: x * (changes["width"] / config.width) ** 0.5 for name, x in last.items()}
    self._check_result(task, changes, arrays)
    return changes, arrays

  def _check(self, config: Any, params: Boxes) -> None:
    field = STRUCTURES[self.structure]
    there = any(set(AXES[self.structure]) & set(box.names) for box in params.values())
    if not hasattr(config, field) or not there or (self.structure == "layers" and getattr(config, "shared_layers", 0)):
      raise UserError(f"remove: this model has no {self.structure} that can leave it")
    if self.structure == "width":
      self._check_width(config, params)
    if self.structure == "layers" and getattr(config, "scale_by_layer", False):
      raise UserError("remove: the attention of each layer is scaled by its number, so none can leave")

  def _check_width(self, config: Any, params: Boxes) -> None:
    if getattr(config, "positions", "") == "sinusoidal" or getattr(config, "scale_embedding", False):
      raise UserError("remove: this model computes its positions or the size of its vectors from its width")
    if _scales_scores(config) and config.post_norm:
      raise UserError("remove: the scores of this model depend on its width, and no norm is left to make up for it")
    sizes = {box.value.shape[axis] for name, box in params.items() for axis in self._axes(name, box)}
    if sizes != {config.width}:
      raise UserError(f"remove: this model has vectors of several widths, {', '.join(map(str, sorted(sizes)))}")

  def _check_result(self, task: Task, changes: dict[str, Any], arrays: dict[str, Any]) -> None:
    """Raises UserError where the changed config describes other parameters, as of towers that share a size."""
    try:
      model = type(task.model)(dataclasses.replace(task.model.config, **changes))
      spec = task.spec(1, task.model.config.length)
      made = jax.eval_shape(dataclasses.replace(task, model=model).init, jax.random.key(0), spec)
    except ValueError as error:
      raise UserError(f"remove: {self.structure} cannot leave this model alone: {error}") from error
    wanted = {name: box.value.shape for name, box in pytree.named_leaves(made, is_leaf=is_partitioned).items()}
    if other := [
      name for name in wanted.keys() | arrays if wanted.get(name) != getattr(arrays.get(name), "shape", None)
    ]:
      raise UserError(f"remove: {self.structure} cannot leave this model alone: {min(other)} would have to change, too")

  def _axes(self, name: str, box: LogicallyPartitioned) -> list[int]:
    """Returns the indices of the axes of a parameter that lose units."""
    wanted = AXES[self.structure]
    if self.structure == "width" and re.match(r"model/pooler/|heads/\w+/dense/", name):
      wanted = ("width", "output")  # their outputs take the place of what they read
    axes = [i for i, axis in enumerate(box.names) if axis in wanted]
    return axes if self.structure == "width" else axes[:1]

  def _groups(self, params: Boxes) -> dict[str, list[str]]:
    """Returns the paths of parameters that lose the same units: those of an attention, of an MLP, of a stack."""
    groups: dict[str, list[str]] = {}
    for name, box in params.items():
      if self._axes(name, box):
        group = {"layers": name.split("/layers/")[0], "width": "model"}.get(self.structure, name.rsplit("/", 2)[0])
        groups.setdefault(group, []).append(name)
    return groups

  def _scores(
    self, task: Task, params: Boxes, groups: dict[str, list[str]], batches: Iterable[Batch]
  ) -> dict[str, jax.Array]:
    """Returns the scores [layers, units] of each group; of a stack of layers, [1, layers]."""
    units = self._units(task.model.config)
    total: dict[str, Any] = {}
    if self.score == "taylor":
      count = 0
      for products in _gradient_times_weight(task, params, batches):
        for group, names in groups.items():
          reading = [name for name in names if self._reads_units(name, params[name])]
          parts = [self._per_unit(name, params[name], products[name], units, reading=True) for name in reading]
          total[group] = total.get(group, 0.0) + abs(sum(parts))
        count += 1
      if not count:
        raise UserError("remove: Taylor scores need batches")
    else:
      for group, names in groups.items():
        squares = (self._per_unit(n, params[n], jnp.square(params[n].value), units) for n in names)
        total[group] = sum(squares)
        if self.score == "random":
          total[group] = masks.random_scores(group, total[group].shape, self.seed)
    shared = [group for group, names in groups.items() if not any(name.endswith("kernel") for name in names)]
    if shared and self.structure in ("heads", "mlp"):  # a bias of positions, which all layers read
      same = sum(jnp.sum(score, 0, keepdims=True) for group, score in total.items() if group not in shared)
      total = {group: jnp.broadcast_to(same, jnp.shape(total[group])) for group in groups if group not in shared}
      total |= dict.fromkeys(shared, same)
    return total

  def _reads_units(self, name: str, box: LogicallyPartitioned) -> bool:
    """Returns whether a parameter reads units: a kernel, or a table that scores words and nothing else.

    Of layers, it is what the outputs of their attention and MLP read.
    """
    if self.structure == "width" and name.endswith(("unembed/table", "words/table")):
      return True
    axes = {"heads", "mlp"} if self.structure == "layers" else set(AXES[self.structure])
    return name.endswith("kernel") and bool(axes & set(box.names[: first_output(box.names)]))

  def _per_unit(
    self, name: str, box: LogicallyPartitioned, x: jax.Array, units: int | None, reading: bool = False
  ) -> jax.Array:
    """Returns the sums [layers, units] of an array, of a parameter's shape, by its units; of channels, [1, units].

    Args:
      reading: by the units that a kernel reads, not by those that it gives.
    """
    axes = self._axes(name, box)
    axes = axes[:1] if reading else axes
    sums = [_per_axis(x, box.names, axis, units) for axis in axes]
    return jnp.sum(sum(sums), axis=0, keepdims=True) if self.structure == "width" else sums[0]

  def _units(self, config: Any) -> int | None:
    """Returns the number of units of an axis; None where it is that of its indices."""
    return getattr(config, "kv_heads", config.heads) if self.structure == "heads" else None

  def _keep(self, scores: jax.Array) -> jax.Array:
    """Returns the indices [layers, kept] of the highest scores, in their order."""
    units = scores.shape[1]
    lost = round(self.fraction * units)
    if lost == units:
      what = "channels" if self.structure == "width" else self.structure
      raise UserError(f"remove: {self.fraction} of {units} {what} leaves none")
    return jnp.sort(jnp.argsort(scores, axis=1, stable=True)[:, lost:], axis=1)

  def _changes(self, config: Any, kept: dict[str, jax.Array]) -> dict[str, Any]:
    count = next(iter(kept.values())).shape[1]
    if self.structure == "mlp":
      return {"mlp": count}
    own = {name: getattr(config, name) for name in ("head_size", "vision_width") if hasattr(config, name)}  # 0: derived
    if self.structure == "width":
      return {"width": count} | own
    if self.structure == "heads":
      own |= {"kv_heads": count} if hasattr(config, "kv_heads") else {}
      return {"heads": count * config.heads // getattr(config, "kv_heads", config.heads)} | own
    depths = {group.rpartition("/")[2]: indices.shape[1] for group, indices in kept.items()}
    changes: dict[str, Any] = {"depth": depths.get("encoder", count)}
    if getattr(config, "decoder_depth", None) is not None:
      changes["decoder_depth"] = depths["decoder"]
    if getattr(config, "window_layers", ()):
      (indices,) = (indices[0].tolist() for indices in kept.values())
      changes["window_layers"] = tuple(i for i, old in enumerate(indices) if old in config.window_layers)
      if not changes["window_layers"]:
        changes["window"] = None  # without a list, it would be that of all layers
    return changes


def _per_axis(x: jax.Array, names: tuple[str | None, ...], axis: int, units: int | None) -> jax.Array:
  """Returns the sums [layers, units] of an array; [1, units] where it is not stacked, or layers are the units."""
  stacked = int(names[0] == "layers" and axis > 0)
  x = jnp.moveaxis(x, axis, stacked)
  return jnp.sum(x.reshape(x.shape[0] if stacked else 1, units or x.shape[stacked], -1), axis=-1)


def _slice(box: LogicallyPartitioned, axes: Sequence[int], kept_NxU: jax.Array, units: int | None) -> jax.Array:
  """Returns a parameter with some units of its axes, in each layer its own."""
  value = box.value
  for axis in axes:
    stacked = int(box.names[0] == "layers" and axis > 0)
    x = jnp.moveaxis(value, axis, stacked)
    x = x if stacked else x[None]
    each = x.shape[1] // (units or x.shape[1])  # heads that share keys and values
    index = (kept_NxU[..., None] * each + jnp.arange(each)[None, None]).reshape(len(kept_NxU), -1)
    x = jnp.take_along_axis(x, jnp.expand_dims(index, tuple(range(2, x.ndim))), axis=1)
    value = jnp.moveaxis(x if stacked else x[0], stacked, axis)
  return value


def _scales_scores(config: Any) -> bool:
  """Returns whether the scores of words are divided by the root of the width, as in T5 with tied embeddings."""
  chosen = getattr(config, "scale_output", False)
  return config.tie_embeddings and config.positions == "relative" if chosen is None else bool(chosen)


def _gradient_times_weight(task: Task, params: Boxes, batches: Iterable[Batch]) -> Iterator[dict[str, jax.Array]]:
  """Yields gradient * weight of each parameter, for each batch."""
  arrays = {name: box.value for name, box in params.items()}

  def loss(arrays: dict[str, jax.Array], batch: Batch) -> jax.Array:
    tree: Tree = {"model": {}, "heads": {}} | traverse_util.unflatten_dict(arrays, sep="/")
    terms, _ = task.loss(tree, {}, task.initial_carry(len(next(iter(batch.values())))), batch)
    return weighted_sum(task, terms, task.counts(batch))

  gradient = jax.jit(lambda arrays, batch: jax.tree.map(jnp.multiply, jax.grad(loss)(arrays, batch), arrays))
  for batch in batches:
    yield gradient(arrays, batch)
