"""What fine-tuning changes about an optimizer: learning rates that fall towards the bottom, Adam as BERT had it."""

import re
from typing import Any

import jax
import jax.numpy as jnp
import optax

from lmjax.utils import pytree
from lmjax.utils.errors import UserError
from lmjax.utils.pytree import Tree

STACKED = re.compile(r"/layers/")  # parameters of all layers, along their first axis
NUMBERED = re.compile(r"/(layers|forwards|backwards)_(\d+)/")
BOTTOM = re.compile(r"^model/(embed|positions|token_types|embed_norm|words|encoder_bias|decoder_bias)/")


def layer_rates(decay: float, params: Tree) -> Tree:
  """Returns what the learning rate of each parameter is multiplied by: decay^(layers above it).

  1 for the top layer and what is above it, such as heads; decay^depth for embeddings (Howard and Ruder, 2018,
  arXiv:1801.06146). A parameter of all layers has a factor for each, [N, 1, ...]; shared layers count once.
  """
  counts: dict[str, int] = {}
  for name, leaf in pytree.named_leaves(params).items():
    if STACKED.search(name):
      counts[STACKED.split(name)[0]] = len(leaf)
    elif match := NUMBERED.search(name):
      counts[match[1]] = max(counts.get(match[1], 0), int(match[2]) + 1)
  depth = max(counts.values(), default=0)

  def factor(name: str, leaf: jax.Array) -> jax.Array | float:
    if STACKED.search(name):
      return decay ** jnp.arange(len(leaf) - 1.0, -1, -1).reshape(-1, *[1] * (leaf.ndim - 1))
    if match := NUMBERED.search(name):
      return decay ** (counts[match[1]] - 1 - int(match[2]))
    return decay**depth if BOTTOM.search(name) else 1.0

  return pytree.map_named(factor, params)


def scale_by_layer(decay: float) -> optax.GradientTransformation:
  """Multiplies the update of each parameter by its `layer_rates`.

  Raises:
    UserError: the decay is not above 0 and at most 1.
  """
  if not 0 < decay <= 1:
    raise UserError(f"config.optim.layer_decay is above 0 and at most 1, not {decay}")

  def update(updates, state, params=None):
    return jax.tree.map(lambda u, rate: u * rate, updates, layer_rates(decay, updates)), state

  return optax.GradientTransformation(lambda params: optax.EmptyState(), update)


def scale_by_pattern(factors: dict[str, float]) -> optax.GradientTransformation:
  """Multiplies each update by the factor of the first pattern that matches its path; 1 if none does."""
  scale = lambda name, update: update * pytree.first_match(factors, name, 1.0)  # noqa: E731
  return optax.stateless(lambda updates, params: pytree.map_named(scale, updates))


def check_settings(optimizer: Any, params: Tree) -> None:
  """Raises UserError where a setting of a new run's optimizer applies to nothing."""
  paths = list(pytree.named_leaves(params))
  for key in ("lr_multipliers", "frozen"):
    for pattern in getattr(optimizer, key):
      if not any(pytree.first_match({pattern: True}, path, False) for path in paths):
        raise UserError(f"config.optim.{key}: no parameter matches {pattern!r}; they are {', '.join(paths)}")
  if not optimizer.bias_correction and optimizer.optimizer != "adamw":
    raise UserError(f"config.optim.bias_correction is a setting of adamw, not of {optimizer.optimizer}")


def scale_by_bert_adam(b1: float, b2: float, epsilon: float) -> optax.GradientTransformation:
  """Adam without the correction of its moments' bias towards 0, as in the code of BERT.

    m / (sqrt(v) + epsilon), with the moving averages m and v of the gradient and its square

  Its update t is that of Adam times (1 - b1^t) / sqrt(1 - b2^t): about 3 times as large at the first step with b1 = 0.9
  and b2 = 0.999, which makes fine-tuning unstable (Mosbach et al., 2021, arXiv:2006.04884; Zhang et al., 2021,
  arXiv:2006.05987).
  """
  adam = optax.scale_by_adam(b1, b2, epsilon)

  def update(updates, state, params=None):
    _, state = adam.update(updates, state, params)
    return jax.tree.map(lambda m, v: m / (jnp.sqrt(v) + epsilon), state.mu, state.nu), state

  return optax.GradientTransformation(adam.init, update)
