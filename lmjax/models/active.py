"""How many parameters a token uses."""

from typing import Any

import jax

from lmjax.parallel.sharding import is_partitioned
from lmjax.utils.pytree import Tree


def active_parameters(named: Tree, config: Any) -> int:
  """Returns the number of parameters that a token uses: of experts, as many as it chooses.

  Args:
    named: parameters with their axis names; the padding of a vocabulary is not counted.
    config: the model's.
  """
  experts = getattr(config, "experts", 1)
  leaves = jax.tree.leaves(named, is_leaf=is_partitioned)
  used = getattr(config, "chosen", 1)
  return sum(leaf.size() * used // experts if "experts" in leaf.names else leaf.size() for leaf in leaves)
