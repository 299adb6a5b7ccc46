"""Parameter shapes of every family and objective at `:debug`, and the losses of three steps on a fake batch.

    python -m tests.snapshots     # writes tests/snapshots.json anew; look at the difference before committing it

The file guards against changes that nobody intended. Cases that build the same experiment share one compilation.
"""

import json
import re

import jax

from benchmarks.compare import CASES
from lmjax import config, experiment
from lmjax.parallel.sharding import use_layout
from lmjax.testing import fake_batch
from lmjax.train import make_step
from lmjax.utils import pytree
from tests.conftest import ROOT

FILE = ROOT / "tests" / "snapshots.json"
RTOL = {"gpt2_bfloat16": 1e-4}  # rounding depends on the processor
STEPS, ROWS, LENGTH, VOCABULARY = 3, 2, 16, 128


def build(name: str) -> experiment.Experiment:
  """Returns the experiment of a case, made small and without training a tokenizer."""
  reference, overrides = CASES[name]
  file, _, choice = reference.partition(":")
  overrides = {"model.dropout": "0.0", "model.dtype": "float32", "data.length": str(LENGTH)} | overrides
  settings = config.load(str(ROOT / f"configs/{file}.py:{','.join(filter(None, [choice, 'debug']))}"), overrides)
  settings["batch"] = ROWS
  if "target_length" in settings["data"]:
    settings["data"]["target_length"] = LENGTH
  return experiment.build(settings, devices=jax.devices()[:1], vocabulary=VOCABULARY)


def record(name: str) -> dict:
  """Returns {"losses": [...], "parameters": {path: shape}} of a case."""
  run = build(name)
  return {"losses": _losses(repr((run.task, run.optimizer)), run), "parameters": parameters(run)}


def parameters(run: experiment.Experiment) -> dict[str, str]:
  leaves = pytree.named_leaves(run.state(abstract=True).params)
  return {path: "x".join(map(str, leaf.shape)) for path, leaf in leaves.items()}


_known: dict[str, list[float]] = {}


def _losses(key: str, run: experiment.Experiment) -> list[float]:
  if key not in _known:
    batch, losses = fake_batch(run.task, run.batch, run.data.length), []
    with use_layout(run.layout):
      step = jax.jit(make_step(run.task, run.optimizer.build(run.steps), run.transform, run.optimizer.microbatches))
      state = run.state()
      for _ in range(STEPS):
        state, metrics = step(state, batch, jax.random.key(1))
        losses.append(float(f"{metrics['loss'].value():.7g}"))
    _known[key] = losses
  return _known[key]


def load() -> dict[str, dict]:
  """Returns the snapshots in the file, {case: what `record` returns}."""
  snapshots = json.loads(FILE.read_text())
  for snapshot in snapshots.values():
    if isinstance(snapshot["parameters"], str):  # the name of a case with the same ones
      snapshot["parameters"] = snapshots[snapshot["parameters"]]["parameters"]
  return snapshots


def main() -> None:
  snapshots: dict[str, dict] = {}
  for name in CASES:
    snapshot = record(name)
    same = (other for other, known in snapshots.items() if known["parameters"] == snapshot["parameters"])
    snapshots[name] = snapshot | {"parameters": next(same, snapshot["parameters"])}
  text = json.dumps(snapshots, indent=1)
  FILE.write_text(re.sub(r"\[\s+([^]]*?)\s+\]", lambda match: f"[{' '.join(match[1].split())}]", text) + "\n")


if __name__ == "__main__":
  main()
