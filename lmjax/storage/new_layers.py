"""Layers at the top that do not come from the saved model that a run starts from."""

import jax

from lmjax.optim.fine_tuning import NUMBERED
from lmjax.utils.errors import UserError


def keep_bottom(arrays: dict[str, jax.Array], top: int) -> dict[str, jax.Array]:
  """Returns parameters without those of the layers at the top: of stacked layers, the first ones.

  Raises:
    UserError: there are not that many layers.
  """
  matches = {name: match for name in arrays if (match := NUMBERED.search(name))}
  counts: dict[str, int] = {}
  for match in matches.values():
    counts[match[1]] = max(counts.get(match[1], 0), int(match[2]) + 1)
  stacked = {name: len(array) for name, array in arrays.items() if "/layers/" in name}
  fewest = min([*counts.values(), *stacked.values()], default=0)
  if not 0 <= top <= fewest:
    raise UserError(f"config.start.new_layers is {top}, and the model has {fewest} layers")
  arrays = {name: array[: len(array) - top] if name in stacked else array for name, array in arrays.items()}
  above = {name for name, match in matches.items() if int(match[2]) >= counts[match[1]] - top}
  return {name: array for name, array in arrays.items() if name not in above}
