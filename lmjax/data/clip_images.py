"""Images as CLIP reads them, by the settings of a preprocessor_config.json."""

import numpy as np
from PIL import Image

from lmjax.data.images import as_rgb
from lmjax.utils.errors import UserError
from lmjax.utils.fields import Fields

MEAN, DEVIATION = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)  # of CLIP's colours
MOST = 4096  # pixels of a side


def pixels_of(image: Image.Image, size: int, settings: Fields) -> np.ndarray:
  """Returns a Pillow image as float32 [size, size, 3]: resized, the middle cut out, (x / 255 - mean) / deviation.

  Args:
    size: pixels of a side of what the model reads.
    settings: what preprocessor_config.json says; what is missing is as in CLIP, for `size` pixels.

  Raises:
    UserError: the settings do not make an image of this size.
  """
  mean, deviation = (
    _colours(settings, key, default) for key, default in (("image_mean", MEAN), ("image_std", DEVIATION))
  )
  image = as_rgb(image)
  if settings.boolean("do_pad", False):
    side = max(image.size)
    background = Image.new("RGB", (side, side), tuple(int(255 * value) for value in mean))
    background.paste(image, ((side - image.width) // 2, (side - image.height) // 2))
    image = background
  if settings.boolean("do_resize", True):
    resample = Image.Resampling(settings.integer("resample", int(Image.Resampling.BICUBIC), most=5))
    image = image.resize(_resized(image, _section(settings, "size", {"shortest_edge": size})), resample)
  if settings.boolean("do_center_crop", True):
    crop = _section(settings, "crop_size", {"height": size, "width": size})
    image = _middle(image, *(crop.integer(key, size, least=1, most=MOST) for key in ("width", "height")))
  if image.size != (size, size):
    raise UserError(
      f"{settings.where} makes images of {image.width} x {image.height}, and the model reads {size} x {size}"
    )
  pixels = np.asarray(image, np.float32)
  if settings.boolean("do_rescale", True):
    pixels = pixels * np.float32(settings.number("rescale_factor", 1 / 255))
  if settings.boolean("do_normalize", True):
    pixels = (pixels - np.array(mean, np.float32)) / np.array(deviation, np.float32)
  return pixels.astype(np.float32)


def _section(settings: Fields, key: str, default: dict[str, int]) -> Fields:
  """Returns a size, which may be a number instead of an object."""
  value = settings.get(key, default)
  if isinstance(value, dict):
    return settings.section(key, default)
  number = settings.integer(key, least=1, most=MOST)
  whole = {"shortest_edge": number} if key == "size" else {"height": number, "width": number}
  return Fields(whole, settings.where, f"{key}.")


def _resized(image: Image.Image, size: Fields) -> tuple[int, int]:
  shortest = size.integer("shortest_edge", None, least=1, most=MOST)
  if shortest is None:
    return tuple(size.integer(key, least=1, most=MOST) for key in ("width", "height"))
  short = min(image.size)
  width, height = (int(shortest * side / short) if side != short else shortest for side in image.size)
  if max(width, height) > 100 * MOST:
    raise UserError(f"an image of {image.width} x {image.height} is too narrow")
  return width, height


def _middle(image: Image.Image, width: int, height: int) -> Image.Image:
  """Returns the middle of an image, with black beside it where it is smaller."""
  left, top = (image.width - width) // 2, (image.height - height) // 2
  return image.crop((left, top, left + width, top + height))


def _colours(settings: Fields, key: str, default: tuple[float, ...]) -> tuple[float, ...]:
  values = tuple(settings.sequence(key, (int, float), list(default)))
  if len(values) != 3 or not np.isfinite(values).all() or (key == "image_std" and min(values) <= 0):
    raise settings.wrong(key, "three finite numbers, of image_std above 0")
  return values
