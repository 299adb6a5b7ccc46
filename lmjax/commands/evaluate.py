"""Evaluate a trained model, with the evaluators of its run or of a config.

lmjax evaluate --workdir runs/scan
lmjax evaluate --workdir runs/m30k --best --config.data.validation.sources=val.en --config.evals.generation.beams=4
lmjax evaluate --workdir path/to/hf-gpt2 --config configs/text.py:files='val/*.txt'
"""

import contextlib
import json

import jax

from lmjax import storage
from lmjax.commands.options import new_parser, parse_overrides
from lmjax.inference.evaluate import evaluate, make_evaluation
from lmjax.inference.output import main_process_output
from lmjax.logs import console
from lmjax.parallel import processes
from lmjax.utils.errors import UserError, one_line
from lmjax.utils.files import replacing

FREE = ("data", "evals", "batch", "model", "mesh", "rules")  # sections that may differ from those of the run


def main(arguments: list[str]) -> int:
  """Runs `lmjax evaluate`."""
  parser = new_parser("evaluate", __doc__)
  parser.add_argument("--workdir", required=True, help="the run folder, or a Hugging Face folder")
  parser.add_argument("--config", help="for a Hugging Face folder: a config whose task, data and evaluators are used")
  parser.add_argument("--step", type=int, help="the step of the checkpoint; default the latest")
  parser.add_argument("--best", action="store_true", help="the best checkpoint, by config.checkpoint.metric")
  parser.add_argument("--only", action="append", help="the name of an evaluator in config.evals; default all")
  parser.add_argument("--output", help="a JSON file to write the metrics to, too")
  options, overrides = parse_overrides(parser, arguments)
  for key in overrides:
    if key.split(".")[0] not in FREE:
      raise UserError(f"evaluate: --config.{key}: only the sections {', '.join(FREE)} may differ from the run's")
  with processes.joined(), main_process_output(), contextlib.ExitStack() as stack:
    loaded = storage.open(options.workdir, options.step).load(overrides=overrides, best=options.best)
    evaluation = make_evaluation(loaded, options.workdir, options.config, overrides)
    output = options.output and jax.process_index() == 0
    file = stack.enter_context(replacing(options.output)) if output else None  # found to be writable before the work
    metrics = evaluate(loaded, evaluation, options.only or ())
    if file:
      file.write(json.dumps(metrics, indent=2).encode())
    for key, value in metrics.items():
      line = f"{key} {value:.4f}" if isinstance(value, float) else f"{key} {value}"
      console.print(one_line(line))
  return 0
