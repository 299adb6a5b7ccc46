"""Rows with an image and text about it."""

import dataclasses
from collections.abc import Iterable
from typing import Any, ClassVar

import numpy as np

from lmjax.data.documents import Documents
from lmjax.data.images import patches_of
from lmjax.data.packer import Packer, Position, ReadDocument, Row
from lmjax.data.pipeline import Reader
from lmjax.data.sources.base import BadRecord, Source, read_document
from lmjax.data.sources.pictures import Picture
from lmjax.data.tokenizers.base import Tokenizer
from lmjax.utils.errors import UserError


@dataclasses.dataclass(frozen=True)
class ImageText(Reader):
  """An image and text about it in each row: the image's patches, the prompt, and the answer, which is learned.

  length: tokens of a row with the patches, which have one place each. blind: all images are grey, for a model that
  knows the questions alone. The size of images and patches is the model's.
  """

  blind: bool = False
  image: ClassVar[int] = 0
  patch: ClassVar[int] = 1
  debug_source: ClassVar[str] = "lmjax.data.sources.python_images:PythonDocImages"

  @classmethod
  def debug(cls, settings: dict[str, Any]) -> dict[str, Any]:
    return super().debug(settings) | {"length": max(settings["length"], 160)}  # of an image, and of bytes

  def for_model(self, model: Any) -> Reader:
    if not hasattr(model.config, "patches"):
      raise UserError("data: the rows have images: use config.model.kind=lmjax.models.image_decoder:ImageDecoder")
    reader = dataclasses.replace(self)
    object.__setattr__(reader, "image", model.config.image)
    object.__setattr__(reader, "patch", model.config.patch)
    return reader

  def make_tokenizer(self) -> Tokenizer:
    pictures = (read_document(self.source, i) for i in range(len(self.source)))
    return self.tokenizer.make(f"{p.prompt} {p.answer}" for p in pictures if isinstance(p, Picture))

  def position_size(self, training: bool) -> int:
    return 1

  def documents(self, source: Source, tokenizer: Tokenizer, seed: int | None, streams: int) -> Documents:
    return ImageDocuments(self, source, tokenizer, seed, streams)

  def packers(self, documents: Documents, streams: Iterable[int]) -> dict[int, Packer]:
    size = (self.image // self.patch) ** 2, self.patch**2 * 3
    return {stream: ImageRows(self.length, size) for stream in streams}


class ImageDocuments(Documents):
  """Pictures as their patches, the ids before the answer, and the ids of the answer with the end."""

  requires = "images"

  def __init__(self, reader: ImageText, source: Source, tokenizer: Tokenizer, seed: int | None, streams: int):
    super().__init__(source, tokenizer, seed, streams)
    self.reader = reader

  def encode_text(self, document: Any) -> Any:
    """Returns ([patches, prompt, answer], UTF-8 bytes of the answer), or why a picture is skipped."""
    if not isinstance(document, Picture):
      raise UserError("data: the rows need images: use a source of lmjax.data.sources.images or scenes")
    if not document.answer.strip():
      return BadRecord(document.where, "has an empty text")
    try:
      pixels = document.pixels(self.reader.image)
    except UserError as error:  # of a file, which is one record
      return BadRecord(document.where, f"has no image: {error}")
    patches = patches_of(pixels, self.reader.patch) * (not self.reader.blind)
    prompt = prompt_ids(self.tokenizer, document.prompt)
    answer = np.array([*self.tokenizer.encode(document.answer), self.tokenizer.end], np.int32)
    if len(patches) + len(prompt) + len(answer) - 1 > self.reader.length:
      tokens = len(patches) + len(prompt) + len(answer) - 1
      return BadRecord(document.where, f"has {tokens:,} tokens with its image, and a row {self.reader.length:,}")
    return [patches, np.array(prompt, np.int32), answer], len(document.answer.encode())


def prompt_ids(tokenizer: Tokenizer, prompt: str) -> list[int]:
  """Returns the ids between an image and the answer: the start token, which answers follow too, and the prompt."""
  return [tokenizer.start, *(int(i) for i in tokenizer.encode(prompt))]


class ImageRows:
  """A picture in each row; position: the picture to read next."""

  def __init__(self, length: int, patches: tuple[int, int]):
    self.length, self.patches = length, patches

  def row(self, read: ReadDocument, position: Position) -> tuple[Row, Position]:
    """Returns the row of the next picture that can be used; after the last one, a row of padding."""
    row: Row = {key: np.zeros(self.length, np.int32) for key in ("inputs", "targets", "positions", "segments")}
    row |= {"embedded_mask": np.zeros(self.length, np.int32), "weights": np.zeros(self.length, np.float32)}
    row |= {"embeddings": np.zeros(self.patches, np.float32), "bytes": np.float64(0)}
    number, content, size = position[0], [], 0
    while not len(content):
      try:
        content, size = read(number)
      except IndexError:
        return row, position
      number += 1
    patches, prompt, answer = content
    first, end = len(patches) + len(prompt), len(patches) + len(prompt) + len(answer) - 1
    row["embeddings"][:], row["embedded_mask"][: len(patches)] = patches, 1
    row["inputs"][len(patches) : end] = [*prompt, *answer[:-1]]
    row["targets"][first - 1 : end], row["weights"][first - 1 : end] = answer, 1
    row["positions"][:end], row["segments"][:end] = np.arange(end), 1
    return row | {"bytes": np.float64(size)}, (number,)
