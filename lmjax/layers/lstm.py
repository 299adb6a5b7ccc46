"""Long short-term memory, with ELMo's projection and clipping, and a gradient written out for long sequences."""

from functools import partial

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax import struct

from lmjax.layers.backend import einsum_f32
from lmjax.layers.einsum import Einsum, Kernel


@struct.dataclass
class State:
  """The state of a layer: its last output and its cells."""

  h_BxD: jax.Array
  c_BxF: jax.Array


class LSTM(nn.Module):
  """One layer, read from left to right (Hochreiter and Schmidhuber, 1997).

    i, g, f, o = x W + h U + b
    c' = clip(sigmoid(f + 1) c + sigmoid(i) tanh(g))
    h' = clip(sigmoid(o) tanh(c') P),  without P and its clip if outputs are as wide as cells (Sak et al., 2014,
    arXiv:1402.1128)

  clip: largest absolute value, 0 for none.
  """

  cells: int
  width: int
  clip: float = 0.0

  @nn.compact
  def __call__(
    self,
    x_BxLxD: jax.Array,
    state: State | None = None,
    valid_BxL: jax.Array | None = None,
    resets_BxL: jax.Array | None = None,
    drop_BxD: jax.Array | None = None,
  ) -> tuple[jax.Array, State]:
    """Returns the outputs [B, L, D] and the state after the last token.

    Args:
      state: the initial state; None is all zeros.
      valid_BxL: False where a token is padding, which leaves the state as it is.
      resets_BxL: True at the first token of a document: the state before it is zero.
      drop_BxD: multiplies the last output wherever it is read, the same at every step (Gal and Ghahramani, 2016,
        arXiv:1512.05287).
    """
    batch, length, inputs = x_BxLxD.shape
    sizes = {"D": inputs, "Q": 4, "F": self.cells}
    gates_BxLxQxF = Einsum("BLD,DQF->BLQF", sizes, deviation=inputs**-0.5, name="input")(x_BxLxD)
    shape = (self.width, 4, self.cells)
    hidden = Kernel(("width", "gates", "mlp"), shape, self.width**-0.5, name="hidden")(x_BxLxD.dtype)
    project = None
    if self.width != self.cells:
      shape = (self.cells, self.width)
      project = Kernel(("mlp", "width"), shape, self.cells**-0.5, name="project")(x_BxLxD.dtype)
    if state is None:
      state = self.empty(batch)
    drop = jnp.ones((batch, self.width)) if drop_BxD is None else drop_BxD
    valid = jnp.ones((batch, length), bool) if valid_BxL is None else valid_BxL
    resets = jnp.zeros((batch, length), bool) if resets_BxL is None else resets_BxL
    y_LxBxD, h, c = _scan(
      gates_BxLxQxF.swapaxes(0, 1), hidden, project, state.h_BxD, state.c_BxF, valid.T, resets.T, drop, self.clip
    )
    return y_LxBxD.swapaxes(0, 1).astype(x_BxLxD.dtype), State(h, c)

  def empty(self, batch: int) -> State:
    """Returns the state before the first token of `batch` rows."""
    return State(jnp.zeros((batch, self.width)), jnp.zeros((batch, self.cells)))


def _cell(a_BxQxF: jax.Array, c_BxF: jax.Array, clip: float) -> tuple[jax.Array, jax.Array]:
  """Returns the new cells and the gated outputs, both [B, F]."""
  i, g, f, o = (a_BxQxF[:, gate] for gate in range(4))
  c_BxF = jax.nn.sigmoid(f + 1) * c_BxF + jax.nn.sigmoid(i) * jnp.tanh(g)
  c_BxF = jnp.clip(c_BxF, -clip, clip) if clip else c_BxF
  return c_BxF, jax.nn.sigmoid(o) * jnp.tanh(c_BxF)


float32_product = partial(jnp.einsum, preferred_element_type=jnp.float32)  # of what is added to a float32 state


def _forward(gates, hidden, project, h, c, valid, resets, drop, clip):
  """Scans a sequence [L, B, ...]; returns outputs and last state, and the residuals of every step for the gradient."""

  def step(state, inputs):
    h, c = state
    z, valid, resets = inputs
    valid, resets = valid[:, None], resets[:, None]
    h, c = jnp.where(resets, 0, h), jnp.where(resets, 0, c)
    h_dropped = h * drop
    a = z.astype(jnp.float32) + float32_product("bd,dqf->bqf", h_dropped.astype(hidden.dtype), hidden)
    new_c, out = _cell(a, c, clip)
    new_h = out
    if project is not None:
      new_h = float32_product("bf,fd->bd", out.astype(project.dtype), project)
      new_h = jnp.clip(new_h, -clip, clip) if clip else new_h
    h, before, c = jnp.where(valid, new_h, h), c, jnp.where(valid, new_c, c)
    return (h, c), (h, (a, before, h_dropped, out))

  (h, c), (y, residuals) = jax.lax.scan(step, (h, c), (gates, valid, resets))
  return (y, h, c), (hidden, project, valid, resets, drop, y, residuals)


@partial(jax.custom_vjp, nondiff_argnums=(8,))
def _scan(gates, hidden, project, h, c, valid, resets, drop, clip):
  return _forward(gates, hidden, project, h, c, valid, resets, drop, clip)[0]


def _backward(clip, saved, cotangents):
  """Gradients of the products' outputs step by step, of the kernels all at once.

  A scan would add to each kernel's gradient at every step, and read and write all of it; one product over the whole
  sequence needs neither.
  """
  hidden, project, valid, resets, drop, y, (a, before, h_dropped, out) = saved

  def step(state, inputs):
    d_h, d_c = state
    d_y, a, before, h, valid, resets = inputs
    valid, resets = valid[:, None], resets[:, None]
    d_h = d_h + d_y
    d_new = jnp.where(valid, d_h, 0)
    d_out = d_new
    if project is not None:
      d_new = jnp.where(jnp.abs(h) < clip, d_new, 0) if clip else d_new
      d_out = float32_product("bd,fd->bf", d_new.astype(project.dtype), project)
    _, pull = jax.vjp(partial(_cell, clip=clip), a, before)
    d_a, d_before = pull((jnp.where(valid, d_c, 0), d_out))
    d_dropped = float32_product("bqf,dqf->bd", d_a.astype(hidden.dtype), hidden)
    d_h = jnp.where(resets, 0, d_dropped * drop + jnp.where(valid, 0, d_h))
    d_c = jnp.where(resets, 0, d_before + jnp.where(valid, 0, d_c))
    return (d_h, d_c), (d_a, d_new)

  d_y, d_h, d_c = cotangents
  inputs = (d_y, a, before, y, valid, resets)
  (d_h, d_c), (d_a, d_new) = jax.lax.scan(step, (d_h, d_c), inputs, reverse=True)
  dtype = hidden.dtype
  d_hidden = einsum_f32("lbd,lbqf->dqf", h_dropped.astype(dtype), d_a.astype(dtype))
  d_project = None if project is None else einsum_f32("lbf,lbd->fd", out.astype(dtype), d_new.astype(dtype))
  return d_a.astype(dtype), d_hidden, d_project, d_h, d_c, None, None, jnp.zeros_like(drop)


_scan.defvjp(_forward, _backward)
