"""Images as arrays, and as patches."""

import io
import warnings
from collections.abc import Callable

import numpy as np
from etils import epath
from PIL import Image, ImageOps, UnidentifiedImageError

from lmjax.utils import files
from lmjax.utils.errors import UserError, reason

MOST_PIXELS = 100_000_000  # 300 MB as bytes; an image with more is rejected before it is decoded
GREY = (127, 127, 127)  # beside an image that is not square: 0 as a number that the model reads
FORMATS = ("PNG", "JPEG")


def read_image(path: epath.PathLike, size: int) -> np.ndarray:
  """Returns an image as uint8 [size, size, 3]: turned as its EXIF data says, whole, with grey beside it if not square.

  What is transparent is white. Of an animation, the first frame.

  Raises:
    UserError: the file cannot be read, is neither PNG nor JPEG, or has too many pixels.
  """
  return decode_image(files.read_bytes(path), path, size)


def decode_image(
  data: bytes, path: epath.PathLike, size: int, make: Callable[[Image.Image], np.ndarray] | None = None
) -> np.ndarray:
  """Returns what `read_image` does, of the content of a file.

  Args:
    path: its name, for messages.
    make: what makes the array of an image, turned as its EXIF data says, if it is another one.
  """
  try:
    with warnings.catch_warnings():
      warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # pixels are counted here
      with Image.open(io.BytesIO(data), formats=FORMATS) as image:
        if image.width * image.height > MOST_PIXELS:
          raise UserError(f"{path} has {image.width * image.height:,} pixels, more than {MOST_PIXELS:,}")
        if make is not None:
          return make(ImageOps.exif_transpose(image))
        image.draft("RGB", (2 * size, 2 * size))  # a JPEG is decoded at a fraction of its size
        return as_square(ImageOps.exif_transpose(image), size)
  except Image.DecompressionBombError as error:
    raise UserError(f"{path} has more than {MOST_PIXELS:,} pixels") from error
  except UnidentifiedImageError as error:
    raise UserError(f"{path} is not a PNG or JPEG image that can be read") from error
  except (OSError, SyntaxError, ValueError, EOFError) as error:  # what Pillow raises for what it cannot decode
    raise UserError(f"{path} is not a PNG or JPEG image that can be read: {reason(error)}") from error


def as_square(image: Image.Image, size: int) -> np.ndarray:
  """Returns a Pillow image as uint8 [size, size, 3], with grey beside one that is not square."""
  return np.asarray(ImageOps.pad(as_rgb(image), (size, size), Image.Resampling.BICUBIC, GREY), np.uint8)


def as_rgb(image: Image.Image) -> Image.Image:
  """Returns a Pillow image in three colours; what is transparent is white."""
  if image.mode.startswith("I;16") or image.mode == "I":  # 16 bits of grey
    image = Image.fromarray((np.asarray(image).astype(np.int64) >> 8).clip(0, 255).astype(np.uint8))
  if "A" in image.getbands() or "transparency" in image.info:
    image = image.convert("RGBA")
    image = Image.alpha_composite(Image.new("RGBA", image.size, (255, 255, 255, 255)), image)
  return image.convert("RGB")


def patches_of(image: np.ndarray, patch: int) -> np.ndarray:
  """Returns the patches of an image [S, S, 3], row by row, as float32 [I, patch * patch * 3] from -1 to 1."""
  return (cut(image, patch).astype(np.float32) - GREY[0]) / 128


def cut(image: np.ndarray, patch: int) -> np.ndarray:
  """Returns the patches of an image [S, S, 3], row by row, as [I, patch * patch * 3]."""
  count = image.shape[0] // patch
  parts = image.reshape(count, patch, count, patch, -1).transpose(0, 2, 1, 3, 4)
  return parts.reshape(count * count, -1)
