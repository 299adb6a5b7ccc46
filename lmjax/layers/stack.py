"""Layers applied in turn: parameters stacked along a leading axis, computed by a scan or unrolled."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from lmjax.layers.backend import barrier
from lmjax.layers.cache import Cache
from lmjax.layers.kernels.mask import Mask
from lmjax.layers.transposed import transpose
from lmjax.parallel.sharding import is_partitioned
from lmjax.utils.pytree import Tree

REMAT = {
  "none": None,
  "full": jax.checkpoint_policies.nothing_saveable,
  "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
}


def unstack(layers: Tree, depth: int) -> tuple[Tree, ...]:
  """Returns one parameter tree a layer; the gradient of the split is a concatenation, not a sum of padded copies."""
  arrays, structure = jax.tree.flatten(layers)
  columns = [[layer[0] for layer in jax.lax.split(array, (1,) * depth)] for array in arrays]
  return tuple(jax.tree.unflatten(structure, row) for row in zip(*columns, strict=True))


def decode_layout(layers: Tree, depth: int) -> tuple[Tree, ...]:
  """Returns stacked layers as one tree a layer, laid out as decoding reads every weight for every token."""
  return tuple(map(transpose, unstack(layers, depth)))


def stack_names(boxed: Tree) -> Tree:
  """Prepends the name `layers` to every parameter, after a vmapped initialisation."""
  return jax.tree.map(lambda leaf: leaf.add_axis(0, {}), boxed, is_leaf=is_partitioned)


class Stack(nn.Module):
  """`depth` copies of a block. The parameters are the same tree whether `scan` or not, so a checkpoint serves both.

  Unrolled, each block gets the number of its layer; in a scan it is 0 for all.

  The block is applied as a pure function of its own parameters, which may also come as a tuple of trees (see
  `unstack`): decoding wants that, since it reads every weight for every token.
  """

  block: Callable[..., nn.Module]
  depth: int
  scan: bool = True
  remat: str = "none"

  @nn.compact
  def __call__(
    self, x_BxLxD: jax.Array, positions_BxL: jax.Array, mask: Mask, taps: tuple[str, ...] = ()
  ) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Returns the last layer's output and what was tapped: `hidden` [N, B, L, D], `attention` [N, B, H, L, L].

    Also what attention and MLPs sow in the collection `taps`, by its own name: `values` [N, B, L, G, K].
    """
    layers = self._parameters(x_BxLxD, positions_BxL, mask)
    rng = self.make_rng("dropout") if self.has_rng("dropout") else None
    rngs = None if rng is None else jax.random.split(rng, self.depth)

    def layer(number, x_BxLxD, inputs):
      params, rng = inputs
      rngs = {} if rng is None else {"dropout": rng}
      (y, _, weights), sown = self._block().apply(
        {"params": params}, x_BxLxD, positions_BxL, mask, None, number, "attention" in taps, rngs=rngs, mutable="taps"
      )
      values = {"hidden": y, "attention": weights} | {k: v for p in sown.get("taps", {}).values() for k, v in p.items()}
      return y, {key: value for key, value in values.items() if key in taps}

    if REMAT[self.remat] is not None:
      layer = jax.checkpoint(layer, policy=REMAT[self.remat], prevent_cse=not self.scan, static_argnums=(0,))
    if self.scan and not isinstance(layers, tuple):
      return jax.lax.scan(partial(layer, 0), x_BxLxD, (layers, rngs))
    tapped = []
    for i, params in enumerate(layers if isinstance(layers, tuple) else unstack(layers, self.depth)):
      x_BxLxD, tap = layer(i, barrier(x_BxLxD), (params, None if rngs is None else rngs[i]))
      tapped.append(tap)
    return x_BxLxD, jax.tree.map(lambda *leaves: jnp.stack(leaves), *tapped)

  @nn.compact
  def extend(self, x_BxLxD: jax.Array, positions_BxL: jax.Array, mask: Mask, cache: Cache) -> tuple[jax.Array, Cache]:
    """Returns the output for new tokens and the cache with their keys and values; always unrolled."""
    layers = self.get_variable("params", "layers")
    for i, params in enumerate(layers if isinstance(layers, tuple) else unstack(layers, self.depth)):
      outputs: Any = self._block().apply({"params": params}, x_BxLxD, positions_BxL, mask, cache, layer=i)
      x_BxLxD, cache, _ = outputs
    return x_BxLxD, cache

  def _block(self) -> nn.Module:
    return self.block(parent=None)

  def _parameters(self, *inputs) -> Tree:
    if self.has_variable("params", "layers"):
      return self.get_variable("params", "layers")

    def init(rng):
      return self._block().init(rng, *inputs)["params"]

    return self.param("layers", lambda rng: stack_names(jax.lax.map(init, jax.random.split(rng, self.depth))))
