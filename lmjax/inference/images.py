"""Images as the input of a loaded model."""

import numpy as np
from etils import epath

from lmjax.data.images import patches_of, read_image
from lmjax.data.objectives.images import prompt_ids
from lmjax.storage.base import LoadedModel
from lmjax.utils.errors import UserError


def inputs(loaded: LoadedModel, image: epath.PathLike, prompts: list[str]) -> tuple[np.ndarray, list[list[int]]]:
  """Returns the patches of an image for each prompt [B, I, C], and the ids of prompts with places for the image.

  Raises:
    UserError: the model reads no images, or the file is not one.
  """
  config = loaded.task.model.config
  if not hasattr(config, "patches"):
    raise UserError("generate: --image needs a model that reads images, and this one reads text alone")
  patches = patches_of(read_image(image, config.image), config.patch)
  rows = [[0] * config.patches + prompt_ids(loaded.tokenizer, prompt) for prompt in prompts]
  return np.stack([patches] * len(prompts)), rows
