"""Seconds to save and to restore the state of GPT-2 124M with AdamW, and the part of them that checksums take.

    python benchmarks/checkpoint.py --folder /tmp/checkpoints

1.5 GB of random numbers, which do not compress. Prints one JSON line: medians of --repeats. A save is timed until the
checkpoint is complete, although training goes on after the first fraction of it.
"""

import argparse
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
from lmjax.state import TrainState, init_state
from lmjax.tasks.causal_lm import CausalLM
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
  seconds: dict[str, list[float]] = {"save": [], "restore": [], "save_checksums": [], "restore_checksums": []}

  def timed(name: str, fn):
    @functools.wraps(fn)
    def run(*arguments, **more):
      start = time.perf_counter()
      result = fn(*arguments, **more)
      seconds[name][-1] += time.perf_counter() - start
      return result

    return run

  checksums.save = timed("save_checksums", checksums.save)
  checksums.check = timed("restore_checksums", checksums.check)
  folder = tempfile.mkdtemp(dir=options.folder)
  try:
    checkpoints = checkpoint.Checkpoints(epath.Path(folder), checkpoint.CheckpointConfig(keep=1, best=0))
    for _ in range(options.repeats):
      for values in seconds.values():
        values.append(0.0)
      start = time.perf_counter()
      checkpoints.save(0, state, data, None)
      checkpoints.wait()
      seconds["save"][-1] = time.perf_counter() - start
      start = time.perf_counter()
      restored, _ = checkpoints.restore(abstract, data)
      jax.block_until_ready(restored)
      seconds["restore"][-1] = time.perf_counter() - start
      del restored
    checkpoints.close()
    size = sum(path.stat().length for path in checksums.walk(epath.Path(folder)).values())
  finally:
    shutil.rmtree(folder)
  medians = {name: round(statistics.median(values), 3) for name, values in seconds.items()}
  print(json.dumps({
    "bytes": size, **medians,
    "save_fraction": round(medians["save_checksums"] / medians["save"], 3),
    "restore_fraction": round(medians["restore_checksums"] / medians["restore"], 3),
  }))  # fmt: skip


if __name__ == "__main__":
  main()
