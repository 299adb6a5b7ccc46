"""Seconds to save and to restore the state of GPT-2 124M with AdamW, and the part of them that checksums take.

    python benchmarks/checkpoint.py --folder /tmp/checkpoints

1.5 GB of random numbers, which do not compress. Prints one JSON line: of --repeats rounds, each with checksums and
without, the median, the smallest and the largest number of seconds. A save is timed until the checkpoint is complete,
although training goes on after the first fraction of it. The fractions are medians over the rounds.
"""

import argparse
import collections
import functools
import json
import shutil
import statistics
import tempfile
import time

import jax
import numpy as np
from etils import epath

from lmjax import checkpoint
from lmjax.compression.base import Identity
from lmjax.models import decoder
from lmjax.models.decoder import Decoder
from lmjax.optim import Optimizer
from lmjax.parallel.mesh import MeshShape
from lmjax.parallel.sharding import Layout
from lmjax.state import TrainState
from lmjax.tasks.causal_lm import CausalLM
from lmjax.testing import init_state
from lmjax.utils import checksums


def make_state(layers: int | None, abstract: bool = False) -> TrainState:
  """Returns a state whose floating-point arrays are random."""
  more = {} if layers is None else {"depth": layers}
  task = CausalLM(Decoder(decoder.Config(**decoder.PRESETS["gpt2-124m"] | more)), packed=False)
  layout = Layout.build(MeshShape().build(jax.devices()[:1]), "ddp")
  state = init_state(task, Optimizer().build(9), Identity(), layout, 1, 8, 0, abstract=abstract)
  if abstract:
    return state
  random = np.random.default_rng(0)

  def fill(leaf: jax.Array) -> jax.Array:
    if leaf.dtype != np.float32:
      return leaf
    return jax.device_put(random.standard_normal(leaf.shape, np.float32), leaf.sharding)

  return jax.tree.map(fill, state)


def main() -> None:
  """Prints the measurements as JSON."""
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--folder", help="where to write; default a temporary folder")
  parser.add_argument("--repeats", type=int, default=5)
  parser.add_argument("--layers", type=int, help="a smaller model")
  options = parser.parse_args()
  state, abstract = make_state(options.layers), make_state(options.layers, abstract=True)
  data = checkpoint.data_state(jax.random.key(0), np.zeros((1, 1)), 0)
  seconds: dict[str, list[float]] = collections.defaultdict(list)

  with_checksums = True

  def timed(name: str, fn):
    @functools.wraps(fn)
    def run(*arguments, **more):
      start = time.perf_counter()
      result = fn(*arguments, **more) if with_checksums else None
      if with_checksums:
        seconds[name][-1] += time.perf_counter() - start
      return result

    return run

  checksums.save = timed("save_checksums", checksums.save)
  checkpoint.check = timed("restore_checksums", checkpoint.check)
  folder = tempfile.mkdtemp(dir=options.folder)
  try:
    checkpoints = checkpoint.Checkpoints(epath.Path(folder), checkpoint.CheckpointConfig(keep=1, best=0))
    for number in range(2 * options.repeats):
      with_checksums = number % 2 == 0
      kind = "" if with_checksums else "_without"
      if with_checksums:
        seconds["save_checksums"].append(0.0)
        seconds["restore_checksums"].append(0.0)
      start = time.perf_counter()
      checkpoints.save(0, state, data, None)
      checkpoints.wait()
      seconds["save" + kind].append(time.perf_counter() - start)
      start = time.perf_counter()
      restored, _ = checkpoints.restore(abstract, data)
      jax.block_until_ready(restored)
      seconds["restore" + kind].append(time.perf_counter() - start)
      del restored
    checkpoints.close()
    size = sum(path.stat().length for path in checksums.walk(epath.Path(folder)).values())
  finally:
    shutil.rmtree(folder)
  for name in ("save", "restore"):
    seconds[f"{name}_fraction"] = [a / b for a, b in zip(seconds[f"{name}_checksums"], seconds[name], strict=True)]
  spread = lambda values: [round(f(values), 3) for f in (statistics.median, min, max)]  # noqa: E731
  print(json.dumps({"bytes": size} | {k: spread(v) for k, v in seconds.items()}))


if __name__ == "__main__":
  main()
