"""A folder of cached scores: how a valid example is made and read."""

import pathlib

import numpy as np

from lmjax.data.cached_scores import Cached, Writer

BATCH = {"inputs": np.arange(12, dtype=np.int32).reshape(2, 6)}


def make(folder: pathlib.Path) -> None:
  settings = dict(keys=["inputs"], top=4, temperature=2.0, classes=50, teacher="runs/teacher")
  writer, rng = Writer(folder, settings), np.random.default_rng(0)
  writer.add(BATCH, rng.integers(0, 50, (2, 6, 4)), -rng.random((2, 6, 4)).astype(np.float32))
  writer.flush()


def read(folder: pathlib.Path) -> None:
  cached = Cached(folder)
  assert cached.settings["top"] > 0
  cached.rows(BATCH)
