"""The optimizer: clipping, the update rule, decoupled decay, per-pattern rates, freezing, and the moving average.

One frozen dataclass whose `build` is an optax chain; what it learns about parameters it learns from their path names.
"""

import dataclasses

import jax
import jax.numpy as jnp
import optax
import optax.contrib

from lmjax.optim.schedules import SCHEDULES, schedule
from lmjax.utils import pytree
from lmjax.utils.pytree import Tree

OPTIMIZERS = ("adamw", "adafactor", "lion", "muon", "sgd")


@dataclasses.dataclass(frozen=True)
class Optimizer:
  """How parameters move. Rates are per step; patterns are regular expressions searched in a path name.

  adamw: Loshchilov and Hutter (2019), arXiv:1711.05101; adafactor: Shazeer and Stern (2018), arXiv:1804.04235; lion:
  Chen et al. (2023), arXiv:2302.06675; muon: Jordan et al. (2024), on matrices, with adam for the rest.
  """

  optimizer: str = "adamw"
  peak_lr: float = 6e-4
  schedule: str = "cosine"
  warmup: int = 0  # steps
  decay: int = 0  # steps of the falling end of warmup_stable_decay
  final_lr_ratio: float = 0.1  # the last rate, as a fraction of the peak
  b1: float = 0.9
  b2: float = 0.95
  epsilon: float = 1e-8
  momentum: float = 0.9  # of sgd
  weight_decay: float = 0.1
  decay_pattern: str = "kernel|table"  # pattern of what decays: matrices, no biases and no norms
  clip: float = 1.0  # largest global norm of the gradient; 0 does not clip
  lr_multipliers: dict[str, float] = dataclasses.field(
    default_factory=dict
  )  # pattern -> factor of the rate, first match
  frozen: tuple[str, ...] = ()  # patterns of what does not move
  ema: float = 0.0  # decay of the moving average of the parameters; 0 keeps none
  microbatches: int = 1  # parts of a batch whose gradients are added up before the update

  def __post_init__(self):
    if self.optimizer not in OPTIMIZERS:
      raise ValueError(f"optimizer is one of {', '.join(OPTIMIZERS)}, not {self.optimizer!r}")
    if self.schedule not in SCHEDULES:
      raise ValueError(f"schedule is one of {', '.join(SCHEDULES)}, not {self.schedule!r}")
    for name in ("peak_lr", "clip", "weight_decay", "warmup", "decay"):
      if getattr(self, name) < 0:
        raise ValueError(f"{name} is at least 0, not {getattr(self, name)}")
    if not 0 <= self.ema < 1:
      raise ValueError(f"ema is at least 0 and below 1, not {self.ema}")
    if self.microbatches < 1:
      raise ValueError(f"microbatches is at least 1, not {self.microbatches}")

  def learning_rate(self, steps: int):
    """Returns the learning rate as a function of the step."""
    return schedule(self.schedule, self.peak_lr, steps, self.warmup, self.final_lr_ratio, self.decay)

  def build(self, steps: int) -> optax.GradientTransformation:
    """Returns the optax chain for a run of `steps` steps; the moving average is its last link."""
    links = [optax.clip_by_global_norm(self.clip)] if self.clip else []
    links.append(self._direction())
    if self.weight_decay:
      links.append(optax.add_decayed_weights(self.weight_decay, self._decayed))
    if self.lr_multipliers:
      links.append(_scaled_by(self.lr_multipliers))
    links.append(optax.scale_by_learning_rate(self.learning_rate(steps)))
    if self.frozen:
      links.append(_scaled_by(dict.fromkeys(self.frozen, 0.0)))
    if self.ema:
      links.append(average(self.ema))
    return optax.chain(*links)

  def _direction(self) -> optax.GradientTransformation:
    if self.optimizer == "adamw":
      return optax.scale_by_adam(self.b1, self.b2, self.epsilon)
    if self.optimizer == "adafactor":
      # Steps relative to the size of what they change, as Shazeer and Stern (2018), arXiv:1804.04235, have them.
      return optax.chain(
        optax.scale_by_factored_rms(decay_rate=0.8), optax.clip_by_block_rms(1.0), optax.scale_by_param_block_rms()
      )
    if self.optimizer == "lion":
      return optax.scale_by_lion(self.b1, self.b2)
    if self.optimizer == "sgd":
      return optax.trace(self.momentum)
    return optax.contrib.muon(
      learning_rate=-1.0,  # the sign and the rate come later in the chain
      beta=self.b2,
      adam_b1=self.b1,
      adam_b2=self.b2,
      muon_weight_dimension_numbers=_matrices,
      # updates as large as Adam's, so that lr_multipliers carry over (Liu et al., 2025, arXiv:2502.16982)
      consistent_rms=0.2,
    )

  def _decayed(self, params: Tree) -> Tree:
    return pytree.map_named(lambda name, _: bool(pytree.first_match({self.decay_pattern: True}, name, False)), params)


def _matrices(params: Tree) -> Tree:
  """Says which axes of a stacked kernel are rows and columns to muon; None for what is no matrix."""

  def leaf(name, p):
    if not name.endswith("kernel") or p.ndim < 3:
      return None
    split = p.ndim - 1 if name.endswith("out/kernel") else 2
    return optax.contrib.MuonDimensionNumbers(tuple(range(1, split)), tuple(range(split, p.ndim)))

  return pytree.map_named(leaf, params)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Average:
  """The moving average of the parameters, as `average` keeps it."""

  params: Tree


def average(decay: float) -> optax.GradientTransformation:
  """Keeps a' = decay a + (1 - decay) (params + updates) and changes nothing; it must stand last in a chain."""

  def update(updates, state, params):
    def mix(a, p, u):
      return decay * a + (1 - decay) * (p + u)

    return updates, Average(jax.tree.map(mix, state.params, params, updates))

  return optax.GradientTransformation(lambda params: Average(jax.tree.map(jnp.copy, params)), update)


def averaged(opt_state: Tree, params: Tree) -> Tree:
  """Returns the moving average out of an optimizer state, or the parameters where none is kept."""
  last = opt_state[-1] if isinstance(opt_state, tuple) and opt_state else None
  return last.params if isinstance(last, Average) else params


def _scaled_by(factors: dict[str, float]) -> optax.GradientTransformation:
  """Multiplies each update by the factor of the first pattern found in its path name."""

  def update(updates, state, params=None):
    return pytree.map_named(lambda name, u: u * pytree.first_match(factors, name, 1.0), updates), state

  return optax.GradientTransformation(lambda params: optax.EmptyState(), update)
