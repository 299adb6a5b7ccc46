"""Measure a trained model: a run's own evaluations, on its own validation data or on other; or those of a config.

lmjax evaluate --workdir runs/scan
lmjax evaluate --workdir runs/m30k --best --config.data.validation.sources=val.en --config.evals.generation.beams=4
lmjax evaluate --workdir path/to/hf-gpt2 --config configs/text.py:files='val/*.txt'
"""

import argparse
import json
from typing import Any

import jax
from etils import epath

from lmjax import config as configs
from lmjax.evals.base import Context
from lmjax.logs import console
from lmjax.parallel import hosts
from lmjax.parallel.sharding import use_layout
from lmjax.storage.loading import LoadedModel, load_model, main_process_output
from lmjax.tasks.base import Task
from lmjax.utils.errors import UserError, did_you_mean


def main(arguments: list[str]) -> int:
  """Runs `lmjax evaluate`."""
  parser = argparse.ArgumentParser(
    prog="lmjax evaluate", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
  )
  parser.add_argument("--workdir", required=True, help="the run folder, or one of Hugging Face's")
  parser.add_argument("--config", help="of what is no run: a config whose task, data and evaluations measure it")
  parser.add_argument("--step", type=int, help="the checkpoint, by its step; default the newest")
  parser.add_argument("--best", action="store_true", help="the checkpoint with the lowest validation loss")
  parser.add_argument("--only", action="append", help="an evaluation by its name in config.evals; default all")
  parser.add_argument("--output", help="JSON file for what was found; default the terminal")
  options, overrides = configs.parse_overrides(parser, arguments)
  for key in overrides:
    if key.split(".")[0] not in ("data", "evals", "batch", "model", "mesh", "rules"):
      raise UserError(f"evaluate: --config.{key}: only data, evals, batch, model, mesh and rules may differ")
  with hosts.joined(), main_process_output():
    _evaluate(options, overrides)
  return 0


def _evaluate(options, overrides: dict[str, str]) -> None:
  opened = load_model(options.workdir, options.step, options.best, overrides=overrides)
  if opened.run is None:
    task, data, evaluators, batch = _borrowed(options, overrides, opened)
  elif options.config:
    raise UserError(f"evaluate: {options.workdir} is a run with a config of its own; change it by --config.key=value")
  else:
    task, data, evaluators, batch = opened.task, opened.run.data, opened.run.evaluators, opened.run.batch
  unknown = [name for name in options.only or () if name not in evaluators]
  if unknown:
    raise UserError(f"evaluate: there is no evaluation {unknown[0]!r}{did_you_mean(unknown[0], evaluators)}")
  context = Context(task, data, opened.tokenizer, batch, opened.layout)
  with use_layout(opened.layout):
    found = {"step": opened.step}
    for name, evaluator in evaluators.items():
      if name in (options.only or evaluators):
        measure = evaluator.prepare(context)
        found |= {f"{name}_{key}": value for key, value in measure(opened.params).items()}
  if options.output and jax.process_index() == 0:
    epath.Path(options.output).write_text(json.dumps(found, indent=2))
  for key, value in found.items():
    console.print(f"{key} {value:.4f}" if isinstance(value, float) else f"{key} {value}", markup=False)


def _borrowed(options, overrides: dict[str, str], opened: LoadedModel) -> tuple[Task, Any, dict[str, Any], int]:
  """Returns the task of a config with the model of a folder, and the config's data, evaluations and batch."""
  if not options.config:
    raise UserError(
      f"evaluate: {options.workdir} is no run, so it has no evaluations of its own: "
      "take those of a config, --config configs/text.py:files='val/*.txt'"
    )
  settings = configs.load(options.config, overrides)
  data = configs.build(settings["data"], "data")
  task = configs.build(settings["task"], "task", model=opened.task.model, **data.shared())
  if type(task) is not type(opened.task):
    raise UserError(
      f"evaluate: {options.config} measures {type(task).__name__}, and {options.workdir} is for "
      f"{type(opened.task).__name__}"
    )
  evals = {name: spec for name, spec in settings["evals"].items() if name != "every"}
  return task, data, {name: configs.build(spec, f"evals.{name}") for name, spec in evals.items()}, settings["batch"]
