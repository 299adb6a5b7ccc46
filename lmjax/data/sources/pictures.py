"""An image with text about it, and the words of digits."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")


class Picture(NamedTuple):
  """An image, what is asked of it, and the answer.

  pixels: returns the image as uint8 [S, S, 3] for a side of S pixels. prompt: may be empty, of captions. kind: of the
  question, for scores by kind.
  """

  pixels: Callable[[int], np.ndarray]
  prompt: str
  answer: str
  kind: str = ""
  where: str = ""
