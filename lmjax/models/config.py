"""Checks that the configs of all families share."""

from collections.abc import Iterable
from typing import Any

from lmjax.layers.mlp import ACTIVATIONS
from lmjax.layers.norms import NORMS
from lmjax.layers.stack import REMAT

DTYPES = ("float32", "bfloat16")
CHOICES: dict[str, Iterable[str]] = {"activation": ACTIVATIONS, "norm": NORMS, "remat": REMAT, "dtype": DTYPES}


def check(config: Any, positive: str, **choices: Iterable[str]) -> None:
  """Checks the fields of a model config that several families have.

  Args:
    positive: names of fields that are at least 1.
    choices: further fields and what they may be.

  Raises:
    ValueError: a field has a value that it cannot have.
  """
  for name, values in (CHOICES | choices).items():
    if hasattr(config, name) and getattr(config, name) not in values:
      raise ValueError(f"{name} is one of {', '.join(values)}, not {getattr(config, name)!r}")
  for name in positive.split():
    if getattr(config, name) < 1:
      raise ValueError(f"{name} is at least 1, not {getattr(config, name)}")
  if not 0 <= config.dropout < 1:
    raise ValueError(f"dropout is at least 0 and below 1, not {config.dropout}")
