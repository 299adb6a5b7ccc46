"""Learning rates over steps, each as a fraction of the peak rate."""

from collections.abc import Callable

import jax.numpy as jnp

Schedule = Callable[[jnp.ndarray], jnp.ndarray]


def cosine(steps: int, warmup: int, final: float, decay: int) -> Schedule:
  """Falls along half a cosine: final + (1 - final) (1 + cos(pi t)) / 2 (Loshchilov, Hutter, 2017, arXiv:1608.03983)."""
  return lambda step: final + (1 - final) * (1 + jnp.cos(jnp.pi * _progress(step, warmup, steps))) / 2


def linear(steps: int, warmup: int, final: float, decay: int) -> Schedule:
  """Falls along a line: 1 - (1 - final) t."""
  return lambda step: 1 - (1 - final) * _progress(step, warmup, steps)


def inverse_sqrt(steps: int, warmup: int, final: float, decay: int) -> Schedule:
  """Falls as sqrt(warmup / step) (Vaswani et al., 2017, arXiv:1706.03762, section 5.3)."""
  return lambda step: jnp.sqrt(max(warmup, 1) / jnp.maximum(step, max(warmup, 1)))


def warmup_stable_decay(steps: int, warmup: int, final: float, decay: int) -> Schedule:
  """Stays at the peak, then falls along a line over the last `decay` steps (Hu et al., 2024, arXiv:2404.06395)."""
  return lambda step: 1 - (1 - final) * _progress(step, steps - decay, steps)


def constant(steps: int, warmup: int, final: float, decay: int) -> Schedule:
  """Stays at the peak."""
  return lambda step: jnp.ones_like(step, dtype=jnp.float32)


SCHEDULES = {
  "cosine": cosine,
  "linear": linear,
  "inverse_sqrt": inverse_sqrt,
  "warmup_stable_decay": warmup_stable_decay,
  "constant": constant,
}


def schedule(name: str, peak: float, steps: int, warmup: int, final: float, decay: int) -> Schedule:
  """Returns the learning rate of each step (from 0): `warmup` steps up a line to `peak`, then the named shape.

  The rate of step k during warm-up is peak * (k + 1) / warmup, so the first step is not lost.
  """
  shape = SCHEDULES[name](steps, warmup, final, decay)

  def rate(step):
    step = jnp.asarray(step, jnp.float32)
    return peak * jnp.where(step < warmup, (step + 1) / max(warmup, 1), shape(step))

  return rate


def _progress(step, start: int, end: int):
  """Returns how far the step is from start to end, 0 to 1."""
  return jnp.clip((step - start) / max(end - start, 1), 0.0, 1.0)
