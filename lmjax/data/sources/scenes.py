"""Scenes drawn at run time, with captions and questions: which shapes, of which colours and sizes, and where.

Some combinations of a colour and a shape occur in no training scene, so that a model which has only learned which
combinations there are cannot name them.
"""

import dataclasses
import functools
from typing import NamedTuple

import numpy as np

from lmjax.data.sources.pictures import WORDS, Picture

COLOURS = {"red": (220, 40, 40), "green": (40, 170, 60), "blue": (50, 80, 220), "yellow": (230, 210, 40),
           "purple": (150, 50, 170)}  # fmt: skip
SHAPES = ("circle", "square", "triangle", "cross")
SIZES = {"small": 0.22, "large": 0.4}  # half a side, in cells
CELLS = 3  # of a side of a scene
ROWS, COLUMNS = ("top", "middle", "bottom"), ("left", "centre", "right")
KINDS = ("caption", "count", "place", "relation")
HELD_OUT = frozenset((colour, SHAPES[i % len(SHAPES)]) for i, colour in enumerate(COLOURS))


class Thing(NamedTuple):
  """A shape in a scene; cell: row by row."""

  size: str
  colour: str
  shape: str
  cell: int

  @property
  def name(self) -> str:
    """Its colour and its shape."""
    return f"{self.colour} {self.shape}"


@dataclasses.dataclass(frozen=True)
class Scenes:
  """Scenes of one to three shapes on a grid of three by three, each with a caption or a question.

  scenes: how many. part: `train`; `seen`, other scenes of the same combinations; `held_out`, scenes in which every
  shape is of a combination that `train` does not have. kinds: of captions and questions, in turn. seed: of all that is
  random.
  """

  scenes: int = 20_000
  part: str = "train"
  kinds: tuple[str, ...] = KINDS
  seed: int = 0

  def __post_init__(self):
    if self.part not in ("train", "seen", "held_out"):
      raise ValueError(f"part is train, seen or held_out, not {self.part!r}")
    if not self.kinds or not set(self.kinds) <= set(KINDS):
      raise ValueError(f"kinds are some of {', '.join(KINDS)}, not {self.kinds!r}")
    if not 1 <= self.scenes < 2**31 or not 0 <= self.seed < 2**31:
      raise ValueError("scenes is at least 1 and seed at least 0, both below 2^31")

  def __len__(self) -> int:
    return self.scenes

  def __getitem__(self, index: int) -> Picture:
    if not 0 <= index < self.scenes:
      raise IndexError(index)
    rng = np.random.default_rng((self.seed, ("train", "seen", "held_out").index(self.part), index))
    kind = self.kinds[index % len(self.kinds)]
    things = self._things(rng, 2 if kind == "relation" else int(rng.integers(1, 4)))
    prompt, answer = ask(things, kind, rng)
    draw = functools.partial(draw_scene, things, tuple(rng.integers(200, 256, 3).tolist()))
    return Picture(draw, prompt, answer, kind, f"{self.part}:{index}")

  def _things(self, rng: np.random.Generator, count: int) -> list[Thing]:
    """Returns shapes with different names, in the order of their cells."""
    both = [(colour, shape) for colour in COLOURS for shape in SHAPES]
    own = [pair for pair in both if (pair in HELD_OUT) == (self.part == "held_out")]
    chosen = rng.choice(len(own), count, replace=False)
    cells = sorted(rng.choice(CELLS**2, count, replace=False).tolist())
    sizes = [[*SIZES][i] for i in rng.integers(2, size=count)]
    return [Thing(size, *own[i], cell) for size, i, cell in zip(sizes, chosen, cells, strict=True)]  # type: ignore[call-arg]


def ask(things: list[Thing], kind: str, rng: np.random.Generator) -> tuple[str, str]:
  """Returns a prompt of a kind about shapes, and the answer."""
  one = things[rng.integers(len(things))]
  if kind == "caption":
    return "describe", " and ".join(f"a {thing.size} {thing.name}" for thing in things)
  if kind == "count":
    what = (one.colour, one.shape, *COLOURS, *SHAPES)[rng.integers(2) if rng.random() < 0.7 else rng.integers(2, 11)]
    return f"how many {what}", WORDS[sum(what in (thing.colour, thing.shape) for thing in things)]
  if kind == "place":
    return f"where is the {one.name}", f"{ROWS[one.cell // CELLS]} {COLUMNS[one.cell % CELLS]}"
  first, second = (things[i] for i in rng.permutation(2))
  axis = int(rng.integers(2))
  word, before = ("above", first.cell // CELLS < second.cell // CELLS) if axis else (
    "left of", first.cell % CELLS < second.cell % CELLS)  # fmt: skip
  return f"is the {first.name} {word} the {second.name}", "yes" if before else "no"


def draw_scene(things: list[Thing], background: tuple[int, int, int], size: int) -> np.ndarray:
  """Returns a scene as uint8 [size, size, 3]."""
  image = np.empty((size, size, 3), np.uint8)
  image[:] = background
  y, x = (np.mgrid[0:size, 0:size] + 0.5) * CELLS / size  # in cells
  for thing in things:
    dy, dx = y - thing.cell // CELLS - 0.5, x - thing.cell % CELLS - 0.5
    half = SIZES[thing.size]
    square = np.maximum(abs(dx), abs(dy)) <= half
    inside = {
      "circle": dx**2 + dy**2 <= half**2,
      "square": square,
      "triangle": square & (abs(dx) <= (dy + half) / 2),
      "cross": square & (np.minimum(abs(dx), abs(dy)) <= half / 3),
    }[thing.shape]
    image[inside] = COLOURS[thing.colour]
  return image
