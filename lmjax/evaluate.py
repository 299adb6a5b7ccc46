"""Measure a trained model: a run's own evaluations, on its own validation data or on other.

lmjax evaluate --workdir runs/scan
lmjax evaluate --workdir runs/m30k --best --config.data.validation.sources=val.en --config.evals.written.beams=4
"""

import argparse
import json

import jax
from etils import epath

from lmjax import config as configs
from lmjax.logs import console
from lmjax.opening import open_model
from lmjax.parallel import hosts
from lmjax.parallel.sharding import use_layout
from lmjax.utils.errors import UserError, nearest


def main(arguments: list[str]) -> int:
  """Runs `lmjax evaluate`."""
  parser = argparse.ArgumentParser(
    prog="lmjax evaluate", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
  )
  parser.add_argument("--workdir", required=True, help="the run folder")
  parser.add_argument("--step", type=int, help="the checkpoint, by its step; default the newest")
  parser.add_argument("--best", action="store_true", help="the checkpoint with the lowest validation loss")
  parser.add_argument("--only", action="append", help="an evaluation by its name in config.evals; default all")
  parser.add_argument("--output", help="JSON file for what was found; default the terminal")
  options, overrides = configs.parse_overrides(parser, arguments)
  for key in overrides:
    if key.split(".")[0] not in ("data", "evals", "batch", "model", "mesh", "rules"):
      raise UserError(f"evaluate: --config.{key}: only data, evals, batch, model, mesh and rules may differ")
  with hosts.joined(), hosts.speaker():
    _evaluate(options, overrides)
  return 0


def _evaluate(options, overrides: dict[str, str]) -> None:
  opened = open_model(options.workdir, options.step, options.best, overrides=overrides)
  run = opened.run
  if run is None:
    raise UserError(f"evaluate: {options.workdir} is no run folder, so it has no evaluations of its own")
  unknown = [name for name in options.only or () if name not in run.evaluators]
  if unknown:
    raise UserError(f"evaluate: the run has no evaluation {unknown[0]!r}{nearest(unknown[0], run.evaluators)}")
  with use_layout(run.layout):
    found = {"step": opened.step}
    for name, evaluator in run.evaluators.items():
      if name in (options.only or run.evaluators):
        measure = evaluator.prepare(run.task, run.data, run.tokenizer, run.batch, run.layout)
        found |= {f"{name}_{key}": value for key, value in measure(opened.params).items()}
  if options.output and jax.process_index() == 0:
    epath.Path(options.output).write_text(json.dumps(found, indent=2))
  for key, value in found.items():
    console.print(f"{key} {value:.4f}" if isinstance(value, float) else f"{key} {value}", markup=False)
