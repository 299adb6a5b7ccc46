"""Images for debugging."""

import numpy as np

from lmjax.data.sources.pictures import Picture
from lmjax.data.sources.python_docs import PythonDocs


class PythonDocImages(PythonDocs):
  """Images for debugging: grey of a brightness, with its name."""

  def __getitem__(self, index: int) -> Picture:  # type: ignore[override]  # images, not text
    level = len(super().__getitem__(index)) % 2
    draw = lambda size: np.full((size, size, 3), 255 * level, np.uint8)  # noqa: E731
    return Picture(draw, "how bright", ("dark", "bright")[level], "level", f"python:{index}")
