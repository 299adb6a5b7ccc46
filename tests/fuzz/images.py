"""The formats of images, and of what says what is in them."""

import json
import pathlib

import numpy as np
from PIL import Image

from lmjax.data.objectives.images import ImageText
from lmjax.data.sources.images import IdxDigits, JsonImages
from lmjax.data.tokenizers.base import Bytes
from tests.families import tiny_image_decoder


def make(folder: pathlib.Path) -> None:
  """Writes images with their captions, and digits in the IDX format."""
  pixels = np.random.default_rng(0).integers(0, 256, (9, 12, 3)).astype(np.uint8)
  Image.fromarray(pixels).save(folder / "a.png")
  Image.fromarray(pixels).convert("P").save(folder / "b.png", transparency=0)
  Image.fromarray(pixels).save(
    folder / "c.jpg", exif=b"Exif\0\0II*\0\x08\0\0\0\x01\0\x12\1\3\0\1\0\0\0\6\0\0\0\0\0\0\0"
  )
  lines = [{"image": name, "text": "a word", "prompt": "what"} for name in ("a.png", "b.png", "c.jpg")]
  (folder / "captions.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
  (folder / "images.idx").write_bytes(bytes([0, 0, 8, 3, 0, 0, 0, 2, 0, 0, 0, 3, 0, 0, 0, 3]) + bytes(range(18)))
  (folder / "labels.idx").write_bytes(bytes([0, 0, 8, 1, 0, 0, 0, 2, 7, 1]))


def read(folder: pathlib.Path) -> None:
  """Makes rows of them."""
  digits = IdxDigits(str(folder / "images.idx"), str(folder / "labels.idx"))
  for source in (digits, JsonImages(str(folder / "captions.jsonl"))):
    reader = ImageText(source, source, 40).for_model(tiny_image_decoder(length=40))
    reader.validate(Bytes(), 2)
