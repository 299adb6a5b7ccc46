"""How many tokens a document has, whatever an objective makes of it."""

from typing import Any

import numpy as np


def length_of(content: Any) -> int:
  """Returns the number of tokens in the content of a document: ids, or several of them, or rows with inputs."""
  if isinstance(content, dict):
    return len(content["inputs"])
  if isinstance(content, list):
    return sum(map(length_of, content))
  return len(content) if np.ndim(content) else 0
