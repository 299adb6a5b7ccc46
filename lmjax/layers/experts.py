"""A mixture of experts: several feed-forward layers, of which a router chooses a few for each token.

Shazeer et al., 2017, arXiv:1701.06538; Jiang et al. (Mixtral), 2024, arXiv:2401.04088. No expert has a capacity, so no
token is dropped (Gale et al., 2022, arXiv:2211.15841): tokens are sorted by expert, and one product of groups of rows
with a matrix each computes all experts.
"""

from collections.abc import Mapping
from functools import partial

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.sharding import PartitionSpec

from lmjax.layers.einsum import Kernel
from lmjax.layers.mlp import ACTIVATIONS
from lmjax.parallel.sharding import current_layout

NAMES = dict.fromkeys(("up", "gate"), ("experts", "width", "mlp")) | {"down": ("experts", "mlp", "width")}


class Experts(nn.Module):
  """sum over the chosen experts e of weight_e * down_e(activation(gate_e(x)) * up_e(x)); without gate if not gated.

  Parameters: `router/kernel` [D, X], `up/kernel` and `gate/kernel` [X, D, F], `down/kernel` [X, F, D]. The scores of
  the router are tapped as `router_scores`, [B, L, X] in float32.
  """

  width: int
  mlp: int
  experts: int
  chosen: int  # experts of a token
  activation: str = "silu"
  gated: bool = True
  normalize: bool = True  # the weights of a token's experts add up to 1
  scale: float = 1.0  # of the output projection's initial values
  deviation: float = 0.02  # of the initial values

  @nn.compact
  def __call__(self, x_BxLxD: jax.Array) -> jax.Array:
    shapes = {name: (self.experts, self.width, self.mlp) for name in ("up", "gate") if self.gated or name == "up"}
    shapes |= {"down": (self.experts, self.mlp, self.width)}
    deviations = {name: self.deviation * (self.scale if name == "down" else 1.0) for name in shapes}
    router_DxX = Kernel(("width", None), (self.width, self.experts), self.deviation, name="router")(x_BxLxD.dtype)
    kernels = {n: Kernel(NAMES[n], shape, deviations[n], name=n)(x_BxLxD.dtype) for n, shape in shapes.items()}
    scores_BxLxX = jnp.einsum("bld,dx->blx", x_BxLxD, router_DxX, preferred_element_type=jnp.float32)
    self.sow("taps", "router_scores", scores_BxLxX, reduce_fn=lambda _, scores: scores, init_fn=lambda: None)
    chosen_BxLxA, weights_BxLxA = route(scores_BxLxX, self.chosen, self.normalize)
    return mix(x_BxLxD, chosen_BxLxA, weights_BxLxA, kernels, self.activation)


def route(scores: jax.Array, chosen: int, normalize: bool) -> tuple[jax.Array, jax.Array]:
  """Returns the experts of each token and their weights, both [..., A], of the router's scores [..., X].

  weight_e = p_e / sum over the chosen of p if normalized, else p_e;  p = softmax(scores)
  """
  weights, experts = jax.lax.top_k(jax.nn.softmax(scores, axis=-1), chosen)
  return experts, weights / jnp.sum(weights, axis=-1, keepdims=True) if normalize else weights


def mix(
  x_BxLxD: jax.Array, chosen_BxLxA: jax.Array, weights_BxLxA: jax.Array, kernels: Mapping[str, jax.Array],
  activation: str,
) -> jax.Array:  # fmt: skip
  """Returns the weighted sums [B, L, D] of what the chosen experts make of each token.

  On a mesh, every device sorts its own tokens. Where the experts are sharded, each device has the tokens of all that
  share the experts with it, computes its own experts of them, and the results are summed.

  Args:
    kernels: by name, as in `NAMES`.
  """
  layout, local = current_layout(), partial(_mix_local, activation=activation)
  if layout is None or layout.mesh.size == 1:
    return local(x_BxLxD, chosen_BxLxA, weights_BxLxA, kernels, 0)
  specs = {}
  for name, kernel_XxIxO in kernels.items():  # an FSDP shard of the width is gathered
    axes = [None if axis == "width" else axis for axis in NAMES[name]]
    specs[name] = layout.spec(*axes, shape=kernel_XxIxO.shape)
  expert_axes, inner_axes = _axes(specs["up"][0]), _axes(specs["up"][2])
  tokens = layout.spec("batch", "length", None, shape=x_BxLxD.shape)
  rows = _axes(tokens[0])
  shared = tuple(axis for axis in rows if axis in expert_axes)
  gathered = PartitionSpec(tuple(axis for axis in rows if axis not in expert_axes) or None, *tokens[1:])

  def device(x, chosen, weights, kernels):
    first = jax.lax.axis_index(expert_axes) * len(kernels["up"]) if expert_axes else 0
    y = local(x, chosen, weights, kernels, first)
    summed = tuple(axis for axis in (*expert_axes, *inner_axes) if axis not in shared)
    y = jax.lax.psum(y, summed) if summed else y
    return jax.lax.psum_scatter(y, shared, tiled=True) if shared else y

  call = jax.shard_map(
    device, mesh=layout.mesh, in_specs=(gathered, gathered, gathered, specs), out_specs=tokens, check_vma=False
  )
  y_BxLxD: jax.Array = call(x_BxLxD, chosen_BxLxA, weights_BxLxA, dict(kernels))
  return y_BxLxD


def _axes(entry: str | tuple[str, ...] | None) -> tuple[str, ...]:
  """Returns the mesh axes of one dimension."""
  return () if entry is None else (entry,) if isinstance(entry, str) else tuple(entry)


def _mix_local(
  x_BxLxD: jax.Array, chosen_BxLxA: jax.Array, weights_BxLxA: jax.Array, kernels: Mapping[str, jax.Array],
  first: jax.Array | int, activation: str,
) -> jax.Array:  # fmt: skip
  """Returns the sums over those experts whose kernels are given, the first of which has the number `first`."""
  width, choices, experts = x_BxLxD.shape[-1], chosen_BxLxA.shape[-1], len(kernels["up"])
  number_R = chosen_BxLxA.reshape(-1) - first  # one row a token and choice
  here_R = (number_R >= 0) & (number_R < experts)
  number_R = jnp.where(here_R, number_R, experts)  # rows of other devices come last, in no group
  order_R = jnp.argsort(number_R, stable=True)
  back_R = jnp.argsort(order_R)
  sizes_X = jnp.bincount(number_R, length=experts + 1)[:experts].astype(jnp.int32)
  x_RxD = jnp.broadcast_to(x_BxLxD.reshape(-1, 1, width), (number_R.size // choices, choices, width))
  x_RxD = permute(x_RxD.reshape(-1, width), order_R, back_R)
  y_RxF = jax.lax.ragged_dot(x_RxD, kernels["up"], sizes_X)
  if "gate" in kernels:
    y_RxF *= ACTIVATIONS[activation](jax.lax.ragged_dot(x_RxD, kernels["gate"], sizes_X))
  else:
    y_RxF = ACTIVATIONS[activation](y_RxF)
  y_RxD = permute(jax.lax.ragged_dot(y_RxF, kernels["down"], sizes_X), back_R, order_R)
  y_RxD = jnp.where(here_R[:, None], y_RxD, 0) * weights_BxLxA.reshape(-1, 1).astype(y_RxD.dtype)
  return y_RxD.reshape(*x_BxLxD.shape[:2], choices, width).sum(axis=2)


@jax.custom_vjp
def permute(x_RxD: jax.Array, order_R: jax.Array, back_R: jax.Array) -> jax.Array:
  """Returns the rows of x in another order; back: the order that undoes it, by which the gradient gathers rows, too."""
  return x_RxD[order_R]


def _permute_forward(x_RxD, order_R, back_R):
  return x_RxD[order_R], back_R


def _permute_backward(back_R, dy_RxD):
  return dy_RxD[back_R], None, None


permute.defvjp(_permute_forward, _permute_backward)
