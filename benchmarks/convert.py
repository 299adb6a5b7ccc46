"""Memory of a conversion: a random GPT-2 1558M read from safetensors and written as safetensors again.

    python benchmarks/convert.py --work /tmp/convert

Makes the folder (6.2 GB) first, in a process of its own. Prints a JSON line: the largest stacked parameter, and the
peak of anonymous memory above that of an idle import, read 50 times a second.
"""

import argparse
import json
import multiprocessing
import pathlib
import shutil
import threading
import time

import jax
import numpy as np
from flax import linen as nn

from lmjax.commands.convert import convert
from lmjax.layers.einsum import padded
from lmjax.models.decoder import PRESETS, Config, Decoder
from lmjax.storage import huggingface
from lmjax.utils import pytree


class RandomParameter:
  """A parameter whose values are drawn when a layer is read."""

  def __init__(self, shape: tuple[int, ...]):
    self.shape = shape

  def __getitem__(self, layer: int) -> np.ndarray:
    return np.random.default_rng(layer).standard_normal(self.shape[1:], np.float32)

  def __array__(self, dtype=None, copy=None) -> np.ndarray:
    return np.random.default_rng(0).standard_normal(self.shape, np.float32)


def make(folder: pathlib.Path) -> None:
  """Writes a random GPT-2 1558M in Hugging Face's format."""
  model = Decoder(Config(**PRESETS["gpt2-1558m"]))
  batch = {"inputs": jax.numpy.zeros((1, 2), int)}
  shapes = nn.unbox(jax.eval_shape(lambda: model.init(jax.random.key(0), batch))["params"])
  assert pytree.named_leaves(shapes)["embed/table"].shape[0] == padded(50257)
  huggingface.save(
    folder, model, {"model": jax.tree.map(lambda leaf: RandomParameter(leaf.shape), shapes), "heads": {}}
  )


def anonymous() -> float:
  """Returns this process's anonymous memory in MB."""
  lines = pathlib.Path("/proc/self/status").read_text().splitlines()
  return next(int(line.split()[1]) / 1e3 * 1.024 for line in lines if line.startswith("RssAnon"))


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--work", required=True, type=pathlib.Path)
  work = parser.parse_args().work
  shutil.rmtree(work, ignore_errors=True)
  work.mkdir()
  maker = multiprocessing.get_context("spawn").Process(target=make, args=(work / "in",))
  maker.start()
  maker.join()
  largest = max(leaf.size * 4 / 1e6 for leaf in jax.tree.leaves(huggingface.load(work / "in").params))
  idle, peak, done = anonymous(), [0.0], threading.Event()

  def watch() -> None:
    while not done.wait(0.02):
      peak[0] = max(peak[0], anonymous())

  watcher = threading.Thread(target=watch)
  watcher.start()
  began = time.perf_counter()
  convert(work / "in", work / "out")
  seconds = time.perf_counter() - began
  done.set()
  watcher.join()
  same = (work / "in" / "model.safetensors").read_bytes() == (work / "out" / "model.safetensors").read_bytes()
  result = dict(largest_mb=largest, idle_mb=idle, peak_above_idle_mb=peak[0] - idle, allowed_mb=2 * largest + 500)
  print(json.dumps({k: round(v, 1) for k, v in result.items()} | {"seconds": round(seconds, 1), "same_bytes": same}))


if __name__ == "__main__":
  main()
