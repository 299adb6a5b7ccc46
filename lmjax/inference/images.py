"""Images as the input of a loaded model."""

import numpy as np
from etils import epath

from lmjax.data.clip_images import pixels_of
from lmjax.data.images import cut, decode_image, patches_of
from lmjax.data.objectives.images import prompt_ids
from lmjax.inference.stream_text import model_inputs
from lmjax.models.llava import Llava
from lmjax.storage.base import LoadedModel
from lmjax.utils import files
from lmjax.utils.errors import UserError
from lmjax.utils.fields import Fields


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
  if not isinstance(loaded.task.model, Llava):
    return patches_of(decode_image(data, name, config.image), config.patch)
  settings = Fields(loaded.settings.get("preprocessor_config") or {}, "preprocessor_config.json")
  pixels = decode_image(data, name, config.image, lambda image: pixels_of(image, config.image, settings))
  return cut(pixels, config.patch)


def placed(loaded: LoadedModel, ids: list[int]) -> list[int]:
  """Returns ids with the places of an image: of its token in them; without one, in front."""
  config = loaded.task.model.config
  if not isinstance(loaded.task.model, Llava):
    return [0] * config.vectors + ids
  token = config.image_token
  start = [] if loaded.tokenizer.start is None else [loaded.tokenizer.start]
  at = ids.index(token) if token in ids else len(start) * (ids[:1] == start)
  rest = [i for i in ids[at:] if i != token]  # a model reads one image
  return [*ids[:at], *[token] * config.vectors, *rest]


def inputs(loaded: LoadedModel, image: epath.PathLike, prompts: list[str]) -> tuple[np.ndarray, list[list[int]]]:
  """Returns the patches of an image for each prompt [B, I, C], and the ids of prompts with places for the image.

  The name of a model's image token in a prompt, `<image>`, is the place of the image; without it, a line before.

  Raises:
    UserError: the model reads no images, or the file is not one.
  """
  one = patches(loaded, files.read_bytes(image), image)
  model, tokenizer = loaded.task.model, loaded.tokenizer
  if isinstance(model, Llava):
    token = tokenizer.fast.id_to_token(model.config.image_token) if hasattr(tokenizer, "fast") else None
    prompts = [prompt if not token or token in prompt else f"{token}\n{prompt}" for prompt in prompts]
    rows, _ = model_inputs(model, tokenizer, prompts, parse_special=True)
  else:
    rows = [prompt_ids(tokenizer, prompt) for prompt in prompts]
  return np.stack([one] * len(prompts)), [placed(loaded, row) for row in rows]
