"""A training step's cost against the length of its rows: an LSTM, serial in length, beside a transformer, quadratic.

    python benchmarks/length.py --output docs/length.png

Both have about 3 M parameters beside a vocabulary of 1,000; every step has 4,096 tokens. Prints a JSON line a length.
"""

import argparse
import json
import time

import jax
import matplotlib.pyplot as plt
import numpy as np

from lmjax.compression.base import Identity
from lmjax.models import decoder, recurrent
from lmjax.models.decoder import Decoder
from lmjax.models.recurrent import Recurrent
from lmjax.optim import Optimizer
from lmjax.parallel.mesh import MeshShape
from lmjax.parallel.sharding import Layout, use_layout
from lmjax.tasks.causal_lm import CausalLM
from lmjax.testing import fake_batch, init_state
from lmjax.train import make_step

TOKENS = 4096
MODELS = {
  "LSTM": lambda length: Recurrent(recurrent.Config(1000, length, width=512, cells=512, depth=2)),
  "transformer": lambda length: Decoder(
    decoder.Config(1000, length, width=256, depth=4, heads=4, kv_heads=4, head_size=64, mlp=1024, scan=False)
  ),
}


def seconds(name: str, length: int, repeats: int) -> float:
  """Returns the median time of a step."""
  task, tx, layout = CausalLM(MODELS[name](length)), Optimizer().build(100), Layout.build(MeshShape().build(), "ddp")
  with use_layout(layout):
    batch = fake_batch(task, TOKENS // length, length)
    state = init_state(task, tx, Identity(), layout, TOKENS // length, length, 0)
    step = jax.jit(make_step(task, tx, Identity()), donate_argnums=0)
    taken = []
    for _ in range(repeats + 1):
      start = time.perf_counter()
      state, _ = jax.block_until_ready(step(state, batch, jax.random.key(0)))
      taken.append(time.perf_counter() - start)
  return float(np.median(taken[1:]))


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument("--output", default="length.png")
  parser.add_argument("--lengths", type=int, nargs="+", default=[32, 64, 128, 256, 512, 1024, 2048])
  parser.add_argument("--repeats", type=int, default=3)
  options = parser.parse_args()
  times: dict[str, list[float]] = {name: [] for name in MODELS}
  for length in options.lengths:
    for name in MODELS:
      times[name].append(seconds(name, length, options.repeats))
    print(json.dumps({"length": length} | {name: round(values[-1], 4) for name, values in times.items()}), flush=True)
  figure, axes = plt.subplots(figsize=(6, 4), layout="constrained")
  for (name, values), color, mark in zip(times.items(), ("#0072B2", "#D55E00"), "os", strict=True):
    axes.loglog(options.lengths, values, marker=mark, color=color, label=name, base=2)
  axes.set(xlabel="tokens in a row", ylabel="seconds a step", title=f"A step of {TOKENS:,} tokens")
  axes.legend(frameon=False)
  figure.savefig(options.output, dpi=120)


if __name__ == "__main__":
  main()
