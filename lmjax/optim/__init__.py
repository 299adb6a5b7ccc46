"""The optimizer as an optax chain.

Its links are gradient clipping, the update rule, decoupled weight decay, learning rates by parameter path, the
schedule, freezing by path, and the moving average.
"""

import dataclasses

import jax
import jax.numpy as jnp
import optax
import optax.contrib

from lmjax.optim.schedules import SCHEDULES, Schedule, schedule
from lmjax.utils import names, pytree
from lmjax.utils.pytree import Tree

BY_PATTERN = "lmjax.optim.fine_tuning:scale_by_pattern"  # named, as most runs do not use it
OPTIMIZERS = ("adamw", "adafactor", "lion", "muon", "sgd")


@dataclasses.dataclass(frozen=True)
class Optimizer:
  """Settings of the optimizer. Patterns are regular expressions, which are searched in the path of a parameter.

  adamw: Loshchilov and Hutter, 2019, arXiv:1711.05101. adafactor: Shazeer and Stern, 2018, arXiv:1804.04235.
  lion: Chen et al., 2023, arXiv:2302.06675. muon: Jordan et al., 2024, for the stacked kernels of
  layers, and Adam for other parameters. sgd: with momentum.
  """

  optimizer: str = "adamw"
  peak_lr: float = 6e-4
  schedule: str = "cosine"  # see optim/schedules.py
  warmup: int = 0  # steps of linear warm-up
  decay: int = 0  # steps of the final decay of warmup_stable_decay
  final_lr_ratio: float = 0.1  # the last learning rate as a fraction of the peak; not of inverse_sqrt and constant
  b1: float = 0.9  # first decay rate, of adamw and lion
  b2: float = 0.95  # second decay rate, of adamw and lion; the momentum of muon
  epsilon: float = 1e-8  # of adamw
  bias_correction: bool = True  # of adamw; BERT's own optimizer had none
  momentum: float = 0.9  # of sgd
  weight_decay: float = 0.1
  decay_pattern: str = "kernel|table"  # parameters with weight decay: by default not biases and norms
  clip: float = 1.0  # maximum global norm of the gradient; 0 disables clipping
  lr_multipliers: dict[str, float] = dataclasses.field(default_factory=dict)  # by pattern; the first match applies
  layer_decay: float = 1.0  # factor of the learning rate from each layer to the one below it
  frozen: tuple[str, ...] = ()  # patterns of parameters that are not trained
  ema: float = 0.0  # decay of the exponential moving average of the parameters; 0 disables it
  microbatches: int = 1  # parts of a batch whose gradients are accumulated before the update

  def __post_init__(self):
    if self.optimizer not in OPTIMIZERS:
      raise ValueError(f"optimizer must be one of {', '.join(OPTIMIZERS)}, not {self.optimizer!r}")
    if self.schedule not in SCHEDULES:
      raise ValueError(f"schedule must be one of {', '.join(SCHEDULES)}, not {self.schedule!r}")
    for name in ("peak_lr", "clip", "weight_decay", "warmup", "decay", "layer_decay"):
      if getattr(self, name) < 0:
        raise ValueError(f"{name} must be at least 0, not {getattr(self, name)}")
    for name in ("ema", "b1", "b2", "momentum"):
      if not 0 <= getattr(self, name) < 1:
        raise ValueError(f"{name} must be at least 0 and below 1, not {getattr(self, name)}")
    if self.microbatches < 1:
      raise ValueError(f"microbatches must be at least 1, not {self.microbatches}")

  def learning_rate(self, steps: int) -> Schedule:
    """Returns the learning rate of a run of `steps` steps, as a function of the step."""
    return schedule(self.schedule, self.peak_lr, steps, self.warmup, self.final_lr_ratio, self.decay)

  def build(self, steps: int) -> optax.GradientTransformation:
    """Returns the optax chain for a run of `steps` steps; the moving average is its last transformation."""
    transformations = [optax.clip_by_global_norm(self.clip)] if self.clip else []
    transformations.append(self._update_rule())
    if self.weight_decay:
      transformations.append(optax.add_decayed_weights(self.weight_decay, self._decay_mask))
    if self.lr_multipliers:
      transformations.append(names.load(BY_PATTERN)(self.lr_multipliers))
    if self.layer_decay != 1:
      transformations.append(names.load("lmjax.optim.fine_tuning:scale_by_layer")(self.layer_decay))
    transformations.append(optax.scale_by_learning_rate(self.learning_rate(steps)))
    if self.frozen:
      transformations.append(names.load(BY_PATTERN)(dict.fromkeys(self.frozen, 0.0)))
    if self.ema:
      transformations.append(average(self.ema))
    return optax.chain(*transformations)

  def _update_rule(self) -> optax.GradientTransformation:
    if self.optimizer == "adamw":
      without = "lmjax.optim.fine_tuning:scale_by_bert_adam"  # named, as below: most runs do not use it
      return (optax.scale_by_adam if self.bias_correction else names.load(without))(self.b1, self.b2, self.epsilon)
    if self.optimizer == "adafactor":
      # Updates relative to the root mean square of the parameter (Shazeer and Stern, 2018, arXiv:1804.04235).
      clip, scale = optax.clip_by_block_rms(1.0), optax.scale_by_param_block_rms()
      return optax.chain(optax.scale_by_factored_rms(decay_rate=0.8), clip, scale)
    if self.optimizer == "lion":
      return optax.scale_by_lion(self.b1, self.b2)
    if self.optimizer == "sgd":
      return optax.trace(self.momentum)
    return optax.contrib.muon(
      learning_rate=-1.0,  # the sign and the learning rate are applied later in the chain
      beta=self.b2,
      adam_b1=self.b1,
      adam_b2=self.b2,
      muon_weight_dimension_numbers=_matrices,
      # Updates with the root mean square of Adam's, for the same learning rates (Liu et al., 2025, arXiv:2502.16982).
      consistent_rms=0.2,
    )

  def _decay_mask(self, params: Tree) -> Tree:
    return pytree.map_named(lambda name, _: bool(pytree.first_match({self.decay_pattern: True}, name, False)), params)


def _matrices(params: Tree) -> Tree:
  """Returns the row and column axes of each kernel for muon, whose axis 0 is the layer; None for other parameters."""

  def leaf(name, p):
    if not name.endswith("kernel") or p.ndim < 3:
      return None
    split = p.ndim - 1 if name.endswith("out/kernel") else 2
    return optax.contrib.MuonDimensionNumbers(tuple(range(1, split)), tuple(range(split, p.ndim)))

  return pytree.map_named(leaf, params)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Average:
  """The state of `average`: the exponential moving average of the parameters."""

  params: Tree


def average(decay: float) -> optax.GradientTransformation:
  """Keeps an exponential moving average of the parameters; updates are unchanged. It must be last in a chain.

  average' = decay average + (1 - decay) (params + updates)
  """

  def update(updates, state, params):
    def mix(a, p, u):
      return decay * a + (1 - decay) * (p + u)

    return updates, Average(jax.tree.map(mix, state.params, params, updates))

  return optax.GradientTransformation(lambda params: Average(jax.tree.map(jnp.copy, params)), update)


def averaged(opt_state: Tree, params: Tree) -> Tree:
  """Returns the moving average in an optimizer state, or `params` if the optimizer does not keep one."""
  last = opt_state[-1] if isinstance(opt_state, tuple) and opt_state else None
  return last.params if isinstance(last, Average) else params
