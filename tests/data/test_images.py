"""Images: files of all kinds as squares, patches, rows, and the sources."""

import json
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from lmjax.data.images import GREY, patches_of, read_image
from lmjax.data.objectives.images import ImageText
from lmjax.data.sources import images, scenes
from lmjax.data.sources.base import BadRecord
from lmjax.data.tokenizers.base import Bytes
from lmjax.utils.errors import UserError
from tests.families import tiny_image_decoder

RED, WHITE = (255, 0, 0), (255, 255, 255)


def png(width, height):
  """A PNG file that says how large it is, and has no pixels."""
  header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
  chunk = lambda name, data: struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))  # noqa: E731
  return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", b"") + chunk(b"IEND", b"")


def test_an_image_is_turned_made_square_and_put_on_white(tmp_path):
  half = np.zeros((4, 8, 3), np.uint8)
  half[:, :4] = RED  # on the left
  Image.fromarray(half).save(tmp_path / "wide.png")
  square = read_image(tmp_path / "wide.png", 8)
  assert square.shape == (8, 8, 3) and square.dtype == np.uint8
  assert (square[0] == GREY).all() and (square[4, 0] == RED).all() and (square[4, 7] == 0).all()
  exif = Image.Exif()
  exif[0x112] = 6  # what is on the left belongs to the top
  Image.fromarray(half).save(tmp_path / "turned.png", exif=exif)
  turned = read_image(tmp_path / "turned.png", 8)
  assert (turned[0, 4] == RED).all() and (turned[7, 4] == 0).all() and (turned[4, 0] == GREY).all()
  Image.new("RGBA", (3, 3), (255, 0, 0, 0)).save(tmp_path / "clear.png")
  assert (read_image(tmp_path / "clear.png", 4) == WHITE).all()


@pytest.mark.parametrize("mode, value", [("L", 200), ("1", 1), ("P", 3), ("LA", (200, 255)), ("I;16", 51400)])
def test_every_mode_of_png_is_read(mode, value, tmp_path):
  Image.new(mode, (5, 5), value).save(tmp_path / "a.png")
  pixels = read_image(tmp_path / "a.png", 4)
  assert pixels.shape == (4, 4, 3) and len(np.unique(pixels.reshape(-1, 3), axis=0)) == 1
  if mode in ("L", "LA", "I;16"):
    assert (pixels == 200).all()


def test_jpegs_of_any_colours_and_a_single_pixel(tmp_path):
  for mode in ("RGB", "L", "CMYK"):
    Image.new(mode, (600, 600)).save(tmp_path / "a.jpg")
    assert read_image(tmp_path / "a.jpg", 8).shape == (8, 8, 3)
  Image.new("RGB", (1, 1), RED).save(tmp_path / "one.png")
  assert (read_image(tmp_path / "one.png", 8) == RED).all()
  Image.new("RGB", (1, 9000), RED).save(tmp_path / "thin.png")
  assert read_image(tmp_path / "thin.png", 8).shape == (8, 8, 3)


@pytest.mark.parametrize(
  "name, content, words",
  [
    ("large.png", png(20_000, 20_000), "100,000,000 pixels"),
    ("larger.png", png(2**20, 2**20), "pixels"),
    ("cut.png", png(4, 4), "not a PNG or JPEG image that can be read"),
    ("text.png", b"hello", "not a PNG or JPEG image"),
    ("empty.png", b"", "not a PNG or JPEG image"),
    ("a.gif", b"GIF89a\x01\x00\x01\x00\x00\x00\x00;", "not a PNG or JPEG image"),
  ],
)
def test_what_is_no_image_is_refused_in_a_line(name, content, words, tmp_path):
  (tmp_path / name).write_bytes(content)
  with pytest.raises(UserError, match=words) as refused:
    read_image(tmp_path / name, 8)
  assert "\n" not in str(refused.value) and name in str(refused.value)


def test_patches_are_squares_row_by_row():
  image = np.arange(6 * 6 * 3, dtype=np.uint8).reshape(6, 6, 3)
  patches = patches_of(image, 2)
  assert patches.shape == (9, 12) and patches.dtype == np.float32 and abs(patches).max() <= 1
  np.testing.assert_allclose(patches[5], (image[2:4, 4:6].reshape(-1).astype(np.float32) - 127) / 128)


def test_rows_have_the_image_the_prompt_and_the_answer(tmp_path):
  Image.new("RGB", (3, 3), RED).save(tmp_path / "a.png")
  lines = [{"image": "gone.png", "text": "x"}, {"text": "y"}]
  lines += [{"image": "a.png", "text": text} for text in (" ", "long " * 20, "b")]
  lines.insert(0, {"image": "a.png", "prompt": "is it", "text": "red"})
  (tmp_path / "a.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
  source = images.JsonImages(str(tmp_path / "a.jsonl"))
  reader = ImageText(source, source, 24).for_model(tiny_image_decoder(length=24, image=8, patch=4))
  (batch,) = reader.validate(Bytes(), 3)
  assert batch["embeddings"].shape == (3, 4, 48) and batch["weights"].any(axis=1).tolist() == [True, True, False]
  row = {key: value[0] for key, value in batch.items()}
  start, end = Bytes().start, Bytes().end
  assert row["inputs"].tolist() == [0] * 4 + [start, *b"is it", *b"red"] + [0] * 11
  assert row["targets"][row["weights"] > 0].tolist() == [*b"red", end]
  assert row["embedded_mask"].tolist() == [1] * 4 + [0] * 20 and row["segments"].sum() == 13
  assert row["positions"][:13].tolist() == [*range(13)] and row["bytes"] == 3
  documents = reader.documents(source, Bytes(), None, 1)
  why = [bad.why for bad in (documents.read(0, i) for i in range(6)) if isinstance(bad, BadRecord)]
  for reason, words in zip(why, ("No such file", "image", "empty text", "tokens with its image"), strict=True):
    assert words in reason
  (blind,) = ImageText(source, source, 24, blind=True).for_model(tiny_image_decoder(length=24)).validate(Bytes(), 2)
  assert not blind["embeddings"].any()


def test_scenes_are_drawn_as_their_answers_say():
  """What the pixels show at the place that an answer names is the colour of the question."""
  for part in ("train", "held_out"):
    source = scenes.Scenes(40, part, ("place",))
    for i in range(len(source)):
      picture = source[i]
      pixels, (row, column) = picture.pixels(60), picture.answer.split()
      y, x = scenes.ROWS.index(row) * 20 + 10, scenes.COLUMNS.index(column) * 20 + 10
      colour, shape = picture.prompt.removeprefix("where is the ").split()
      assert tuple(pixels[y, x]) == scenes.COLOURS[colour]
      assert ((colour, shape) in scenes.HELD_OUT) == (part == "held_out")
  captions = scenes.Scenes(50, "train", ("caption",))
  names = {tuple(thing.split()[2:]) for i in range(50) for thing in captions[i].answer.split(" and ")}
  assert not names & scenes.HELD_OUT
  again = scenes.Scenes(50, "train", ("caption",))
  assert all(
    (captions[i].pixels(24) == again[i].pixels(24)).all() and captions[i][1:] == again[i][1:] for i in range(50)
  )
  for wrong in (dict(part="x"), dict(kinds=()), dict(kinds=("x",)), dict(scenes=0), dict(seed=-1)):
    with pytest.raises(ValueError):
      scenes.Scenes(**wrong)


def test_counts_and_relations_are_right():
  things = [scenes.Thing("small", "red", "circle", 0), scenes.Thing("large", "red", "square", 5),
            scenes.Thing("small", "blue", "circle", 7)]  # fmt: skip
  rng, seen = np.random.default_rng(0), {}
  for _ in range(200):
    seen.update([scenes.ask(things, "count", rng), scenes.ask(things[:2], "relation", rng)])
  assert seen["how many red"] == "two" and seen["how many circle"] == "two" and seen["how many green"] == "zero"
  assert seen["is the red circle left of the red square"] == "yes"
  assert seen["is the red square above the red circle"] == "no"
  assert scenes.ask(things[1:2], "caption", rng) == ("describe", "a large red square")


def test_digits_are_read_from_idx_files(tmp_path):
  (tmp_path / "i").write_bytes(bytes([0, 0, 8, 3, 0, 0, 0, 2, 0, 0, 0, 2, 0, 0, 0, 2]) + bytes([0] * 4 + [255] * 4))
  (tmp_path / "l").write_bytes(bytes([0, 0, 8, 1, 0, 0, 0, 2, 7, 1]))
  digits = images.IdxDigits(str(tmp_path / "i"), str(tmp_path / "l"))
  assert [digits[i].answer for i in range(2)] == ["seven", "one"] and (digits[1].pixels(4) == 255).all()
  for name, content in (("l", bytes([0, 0, 8, 1, 0, 0, 0, 3, 7, 1, 2])), ("l", b"\0\0\x08\1\0\0\0\2\7"), ("i", b"")):
    kept = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match="IDX|digits"):
      len(images.IdxDigits(str(tmp_path / "i"), str(tmp_path / "l")))
    (tmp_path / name).write_bytes(kept)
