"""Learning rate schedules, as fractions of the peak learning rate.

Each is a function of the step after the warm-up; progress(a, b) = clip((step - a) / (b - a), 0, 1).
"""

from collections.abc import Callable

import jax.numpy as jnp

Schedule = Callable[[jnp.ndarray], jnp.ndarray]


def cosine(steps: int, warmup: int, final: float, decay: int) -> Schedule:
  """Cosine decay (Loshchilov and Hutter, 2017, arXiv:1608.03983).

  final + (1 - final) (1 + cos(pi progress(warmup, steps))) / 2
  """
  return lambda step: final + (1 - final) * (1 + jnp.cos(jnp.pi * _progress(step, warmup, steps))) / 2


def linear(steps: int, warmup: int, final: float, decay: int) -> Schedule:
  """Linear decay (as in Devlin et al., 2019, arXiv:1810.04805).

  1 - (1 - final) progress(warmup, steps)
  """
  return lambda step: 1 - (1 - final) * _progress(step, warmup, steps)


def inverse_sqrt(steps: int, warmup: int, final: float, decay: int) -> Schedule:
  """Inverse square root decay (Vaswani et al., 2017, arXiv:1706.03762, section 5.3).

  sqrt(warmup / step); `final` has no effect
  """
  return lambda step: jnp.sqrt(max(warmup, 1) / jnp.maximum(step, max(warmup, 1)))


def warmup_stable_decay(steps: int, warmup: int, final: float, decay: int) -> Schedule:
  """Constant, then linear decay over the last `decay` steps (Hu et al., 2024, arXiv:2404.06395).

  1 - (1 - final) progress(steps - decay, steps)
  """
  return lambda step: 1 - (1 - final) * _progress(step, steps - decay, steps)


def constant(steps: int, warmup: int, final: float, decay: int) -> Schedule:
  """The peak learning rate at every step.

  1; `final` has no effect
  """
  return lambda step: jnp.ones_like(step, dtype=jnp.float32)


SCHEDULES = {
  "cosine": cosine,
  "linear": linear,
  "inverse_sqrt": inverse_sqrt,
  "warmup_stable_decay": warmup_stable_decay,
  "constant": constant,
}


def schedule(name: str, peak: float, steps: int, warmup: int, final_lr_ratio: float, decay: int) -> Schedule:
  """Returns the learning rate as a function of the step (from 0): linear warm-up, then peak x the named shape.

    warm-up: peak (step + 1) / warmup, so that the first update is not zero

  Args:
    name: a key of `SCHEDULES`.
    steps, warmup, decay: numbers of steps of the run, of the warm-up, and of the decay of `warmup_stable_decay`.
    final_lr_ratio: the last learning rate as a fraction of `peak`.
  """
  shape = SCHEDULES[name](steps, warmup, final_lr_ratio, decay)

  def learning_rate(step):
    step = jnp.asarray(step, jnp.float32)
    return peak * jnp.where(step < warmup, (step + 1) / max(warmup, 1), shape(step))

  return learning_rate


def _progress(step, start: int, end: int):
  """Returns progress(start, end) at a step."""
  return jnp.clip((step - start) / max(end - start, 1), 0.0, 1.0)
