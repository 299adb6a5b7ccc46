"""Images as the input of a loaded model."""

import numpy as np
from etils import epath

from lmjax.data.images import decode_image, patches_of
from lmjax.data.objectives.images import prompt_ids
from lmjax.storage.base import LoadedModel
from lmjax.utils import files
from lmjax.utils.errors import UserError


def reads_images(loaded: LoadedModel) -> bool:
  """Returns whether a model reads images."""
  return hasattr(loaded.task.model.config, "patches")


def patches(loaded: LoadedModel, data: bytes, name: epath.PathLike) -> np.ndarray:
  """Returns the patches [I, C] of an image, of which data is the content of the file.

  Raises:
    UserError: the model reads no images, or the file is not one.
  """
  if not reads_images(loaded):
    raise UserError("an image needs a model that reads images, and this one reads text alone")
  config = loaded.task.model.config
  return patches_of(decode_image(data, name, config.image), config.patch)


def placed(loaded: LoadedModel, ids: list[int]) -> list[int]:
  """Returns ids with the places of an image, which are in front."""
  return [0] * loaded.task.model.config.patches + ids


def inputs(loaded: LoadedModel, image: epath.PathLike, prompts: list[str]) -> tuple[np.ndarray, list[list[int]]]:
  """Returns the patches of an image for each prompt [B, I, C], and the ids of prompts with places for the image.

  Raises:
    UserError: the model reads no images, or the file is not one.
  """
  one = patches(loaded, files.read_bytes(image), image)
  return np.stack([one] * len(prompts)), [placed(loaded, prompt_ids(loaded.tokenizer, p)) for p in prompts]
