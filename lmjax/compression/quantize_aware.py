"""Quantization-aware training: the model computes with rounded weights; gradients pass through the rounding."""

import dataclasses

import jax
import jax.numpy as jnp
from flax import traverse_util

from lmjax.compression.quantize import QTensor, Quantize, quantize
from lmjax.layers.leaves import partition
from lmjax.parallel.sharding import is_partitioned
from lmjax.utils import pytree
from lmjax.utils.errors import UserError, one_line
from lmjax.utils.pytree import Tree


@dataclasses.dataclass(frozen=True)
class QuantizeAware(Quantize):
  """Training with the values that `lmjax compress --quantize` will leave.

    forward: Q(w);  gradient: dL/dw = dL/dQ(w), the straight-through estimator (Bengio et al., 2013, arXiv:1308.3432)

  Q rounds to the nearest value, see `quantize`, with the ranges of the weights as they are in each step (Jacob et al.,
  2018, arXiv:1712.05877). The optimizer and checkpoints have float32 weights; the saved state is the scales, and the
  model that is opened or exported has rounded weights. The settings are those of `Quantize`.

  Raises:
    UserError: no kernel matches `targets`.
  """

  def __post_init__(self):
    super().__post_init__()
    if self.activations:
      raise ValueError("activations are not rounded in training")

  def init(self, params: Tree) -> tuple[Tree, Tree, Tree]:
    named = pytree.named_leaves(params, is_leaf=is_partitioned)
    plan = {name: settings for name, box in named.items() if (settings := self.settings(name, box)) is not None}
    if not plan:
      kernels = one_line(", ".join(name for name in named if name.endswith("kernel")))
      raise UserError(f"transform.targets={self.targets!r} matches no kernel; those of this model: {kernels}")
    scales = {}
    for name, settings in plan.items():
      leaf = partition(quantize(named[name].value, *settings), named[name])
      assert isinstance(leaf, QTensor)
      scales[name] = leaf.scale
    return params, {"scales": traverse_util.unflatten_dict(scales, sep="/")}, {}

  def forward(self, params: Tree, state: Tree, frozen: Tree) -> Tree:
    scales = pytree.named_leaves(state["scales"])

    def rounded(name: str, value: jax.Array) -> jax.Array:
      if name not in scales:
        return value
      return value + jax.lax.stop_gradient(self._rounded(name, value, scales[name]).dense(value.dtype) - value)

    return pytree.map_named(rounded, params)

  def _rounded(self, name: str, value: jax.Array, scale: jax.Array) -> QTensor:
    table = name.endswith("table")
    return quantize(value, scale.shape, self.tables if table else self.dtype, table or self.symmetric)

  def update(self, params: Tree, grads: Tree, state: Tree, step: jax.Array) -> tuple[Tree, Tree]:
    named = pytree.named_leaves(params)
    return params, {
      "scales": pytree.map_named(lambda name, scale: self._rounded(name, named[name], scale).scale, state["scales"])
    }

  def merge(self, params: Tree, state: Tree, frozen: Tree) -> Tree:
    scales = pytree.named_leaves(state["scales"])
    return pytree.map_named(
      lambda name, value: self._rounded(name, value, scales[name]).dense(jnp.float32) if name in scales else value,
      params,
    )

  def metrics(self, params: Tree, state: Tree) -> dict[str, jax.Array]:
    return {}
