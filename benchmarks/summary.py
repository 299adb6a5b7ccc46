"""One table of compressed models: size, quality, latency at batch 1 and 32, energy.

    python -m benchmarks.summary --text wiki.valid.raw --workdir SmolLM2.gguf --workdir int8 --workdir wanda
    python -m benchmarks.summary --workdir runs/sst2/0 --workdir student --workdir student-int8

--workdir: what `lmjax evaluate` opens. Quality: with --text, the perplexity of its first 12,000 characters in windows
of 1,024; without, the evaluation of the run that a model comes from. Latency: a forward pass of 1 and of 32 rows of 32
tokens, all models in turn, the median of five. Energy: of 1,000 rows in batches of 32, where the machine has a counter.
Prints a table, and JSON to --report.
"""

import argparse
import functools
import json
import pathlib
from collections.abc import Sequence

import jax
import numpy as np

from benchmarks.compress import token_losses
from lmjax import storage
from lmjax.inference.before_after import computed, latencies, rows_of
from lmjax.inference.evaluate import evaluate, make_evaluation
from lmjax.parallel.sharding import is_partitioned, use_layout
from lmjax.planning.hardware import EnergyMeter
from lmjax.storage.base import LoadedModel
from lmjax.storage.compressed import WEIGHTS
from lmjax.utils import pytree
from lmjax.utils.memory import keep_memory

TOKENS, ROWS, SENTENCES, CHARACTERS, WINDOW = 32, 32, 1000, 12_000, 1024


def size_of(path: str) -> tuple[int, int]:
  """Returns the number of a model's parameters, and their bytes on disk, without the optimizer's."""
  saved, packed = storage.open(path), pathlib.Path(path, WEIGHTS)
  parameters = sum(box.size() for box in pytree.named_leaves(saved.named, is_leaf=is_partitioned).values())
  stored = packed.stat().st_size if packed.exists() else sum(leaf.bytes for leaf in saved.leaves.values())
  return parameters, stored


def quality(loaded: LoadedModel, path: str, text: str, metric: str) -> float:
  """Returns the perplexity of a text, or a metric of the model's own evaluation where there is no text."""
  if text:
    return float(np.exp(token_losses(path, text, min(WINDOW, loaded.task.model.config.length)).mean()))
  return float(evaluate(loaded, make_evaluation(loaded, path, None, {}))[metric])


def joules(loaded: LoadedModel) -> float | None:
  """Returns the energy of 1,000 rows; None where nothing counts it."""
  run = jax.jit(functools.partial(computed, loaded.task))
  with use_layout(loaded.layout):
    batch = rows_of(loaded.task, ROWS, TOKENS)
    jax.block_until_ready(run(loaded.params, batch))
    meter = EnergyMeter(jax.devices())
    for _ in range(-(-SENTENCES // ROWS)):
      jax.block_until_ready(run(loaded.params, batch))
  used = meter.used()
  return 3.6e6 * used.kwh if used.kwh is not None and used.method.startswith("measured") else None


def measure(paths: Sequence[str], text: str, metric: str) -> list[dict[str, object]]:
  """Returns the figures of each model."""
  models = [storage.open(path).load() for path in paths]
  seconds = {rows: latencies(models, rows, TOKENS) for rows in (1, ROWS)}
  return [
    {
      "model": path,
      **dict(zip(("parameters", "bytes"), size_of(path), strict=True)),
      "perplexity" if text else metric: quality(loaded, path, text, metric),
      **{f"milliseconds, {rows} rows": 1e3 * seconds[rows][i] for rows in seconds},
      f"joules, {SENTENCES} rows": joules(loaded),
    }
    for i, (path, loaded) in enumerate(zip(paths, models, strict=True))
  ]


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
  parser.add_argument("--workdir", action="append", required=True)
  parser.add_argument("--text", help="a file, for decoders")
  parser.add_argument("--metric", default="dev_accuracy", help="without --text")
  parser.add_argument("--report", help="a JSON file")
  options = parser.parse_args()
  keep_memory()
  text = pathlib.Path(options.text).read_text()[:CHARACTERS] if options.text else ""
  rows = measure(options.workdir, text, options.metric)
  shown = {None: "not measured"}
  for cells in (rows[0], *(row.values() for row in rows)):
    print(" | ".join(f"{v:.5g}" if isinstance(v, float) else shown.get(v, str(v)) for v in cells))
  if options.report:
    pathlib.Path(options.report).write_text(json.dumps(rows, indent=2) + "\n")


if __name__ == "__main__":
  main()
