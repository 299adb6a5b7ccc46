"""Sources of images with text: files with their captions, and digits."""

import dataclasses
import functools

import numpy as np
from etils import epath
from PIL import Image

from lmjax.data.images import as_square, read_image
from lmjax.data.sources.base import BadRecord
from lmjax.data.sources.gzipped import unzip
from lmjax.data.sources.indexed import Lines
from lmjax.data.sources.paths import expand_paths
from lmjax.data.sources.pictures import WORDS, Picture
from lmjax.data.sources.splits import split_range
from lmjax.utils import files
from lmjax.utils.errors import UserError
from lmjax.utils.fields import Fields


@dataclasses.dataclass(frozen=True)
class JsonImages(Lines):
  """An image in each line of JSON files: `image`, a path from the folder of the file, `text`, and perhaps `prompt`.

  split: as `:90%`, empty for all. shuffle: number the lines in a fixed random order.
  """

  files: str | tuple[str, ...]
  split: str = ""
  shuffle: bool = False

  def __getitem__(self, index: int) -> Picture | BadRecord:
    line, where = self._index.document(index), self._index.where(index)
    if isinstance(line, BadRecord):
      return line
    try:
      record = Fields(files.parse_json(line), where)
      path = epath.Path(where.rpartition(":")[0]).parent / record.text("image")
      prompt, answer = record.text("prompt", ""), record.text("text")
    except (ValueError, UserError) as error:
      return BadRecord(where, str(error).removeprefix(where).strip(": "))
    return Picture(functools.partial(read_image, path), prompt, answer, "", where)


@dataclasses.dataclass(frozen=True)
class IdxDigits:
  """The digits of MNIST in the IDX format, plain or gzipped, and their names in words (LeCun et al., 1998).

  images, labels: the files. split: as `:90%`, empty for all.

  Raises:
    UserError: a file is not in the format, or they do not fit each other.
  """

  images: str
  labels: str
  split: str = ""
  prompt: str = "which digit"

  @functools.cached_property
  def _arrays(self) -> tuple[np.ndarray, np.ndarray]:
    pixels, labels = read_idx(self.images, 3), read_idx(self.labels, 1)
    if len(pixels) != len(labels) or labels.max(initial=0) > 9:
      raise UserError(f"data: {self.images} has {len(pixels):,} images, and {self.labels} is not their digits")
    own = split_range(len(labels), self.split)
    return pixels[own], labels[own]

  def __len__(self) -> int:
    return len(self._arrays[1])

  def __getitem__(self, index: int) -> Picture:
    pixels, label = self._arrays[0][index], int(self._arrays[1][index])
    draw = lambda size: as_square(Image.fromarray(pixels), size)  # noqa: E731
    return Picture(draw, self.prompt, WORDS[label], "digit", f"{self.images}:{index}")


def read_idx(path: str, axes: int) -> np.ndarray:
  """Returns the bytes of an IDX file with so many axes.

  Raises:
    UserError: it is not one.
  """
  (file,) = expand_paths(path)
  data = unzip(file) if file.suffix == ".gz" else files.read_bytes(file)
  shape = np.frombuffer(data[4 : 4 + 4 * axes], ">u4").astype(int) if len(data) >= 4 + 4 * axes else np.zeros(0, int)
  if data[:4] != bytes([0, 0, 8, axes]) or len(data) != 4 + 4 * axes + int(np.prod(shape, dtype=object)):
    raise UserError(f"data: {path} is not an IDX file of {axes} axes of bytes")
  return np.frombuffer(data, np.uint8, offset=4 + 4 * axes).reshape(shape)
