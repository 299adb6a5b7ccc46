"""Evaluate a trained model, with the evaluators of its run or of a config.

lmjax evaluate --workdir runs/scan
lmjax evaluate --workdir runs/m30k --best --config.data.validation.sources=val.en --config.evals.generation.beams=4
lmjax evaluate --workdir path/to/hf-gpt2 --config configs/text.py:files='val/*.txt'
lmjax evaluate --workdir path/to/hf-gpt2 --suite core --data path/to/data --output results

A suite is a name (core), a task (piqa), or a YAML file in the format of lm-evaluation-harness.
"""

import argparse
import contextlib
import importlib
import json

import jax
from etils import epath

from lmjax import storage
from lmjax.commands.options import new_parser, parse_overrides
from lmjax.commands.values import add_step
from lmjax.inference.evaluate import evaluate, make_evaluation
from lmjax.inference.output import main_process_output, show
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
  add_step(parser)
  parser.add_argument("--only", action="append", help="the name of an evaluator in config.evals; default all")
  parser.add_argument("--output", help="a JSON file to write the metrics to, too; the folder of a suite's results")
  parser.add_argument("--suite", action="append", help="a suite, a task or a YAML file, instead of evaluators")
  parser.add_argument("--tasks", type=lambda text: text.split(","), help="some tasks of the suite: piqa,arc_easy")
  parser.add_argument("--shots", type=int, help="examples before each item; default those of the task")
  parser.add_argument("--limit", type=int, least=1, help="items of each task; default all")
  parser.add_argument("--stride", type=int, default=0, help="tokens that a window predicts; 0 is all")
  parser.add_argument("--corpus", action="append", help="files, a run or a config: where items are searched")
  parser.add_argument("--templates", action="store_true", help="each task with all templates of its file: mean, spread")
  parser.add_argument("--workers", type=int, least=1, most=4096, default=1, help="processes that read the corpus")
  parser.add_argument(
    "--min_k", type=float, most=100, default=0.0, help="report Min-K %% probability, with K such as 20"
  )
  parser.add_argument("--data", help="the folder of the suite's data; default the variable LMJAX_DATA")
  options, overrides = parse_overrides(parser, arguments)
  if options.suite:
    if options.config or options.only or {key.split(".")[0] for key in overrides} - {"mesh", "rules"}:
      raise UserError("evaluate: with a --suite there is no --config or --only, and only mesh and rules may be changed")
    return _evaluate_suite(options, overrides)
  for name in ("tasks", "shots", "limit", "stride", "data", "corpus", "workers", "min_k", "templates"):
    if getattr(options, name) not in (None, parser.get_default(name)):
      raise UserError(f"evaluate: --{name} needs a --suite")
  for key in overrides:
    if key.split(".")[0] not in FREE:
      raise UserError(f"evaluate: --config.{key}: only the sections {', '.join(FREE)} may differ from the run's")
  with processes.joined(), main_process_output(), contextlib.ExitStack() as stack:
    loaded = storage.open(options.workdir, options.step).load(overrides=overrides)
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


def _evaluate_suite(options: argparse.Namespace, overrides: dict[str, str]) -> int:
  """Runs a suite; its module, which reads YAML and templates, is imported for a suite only."""
  suites = importlib.import_module("lmjax.inference.suite")
  if not options.output:
    raise UserError("evaluate: --suite needs --output, a folder for the results")
  tasks = suites.choose(options.suite[0], options.tasks or (), *options.suite[1:])
  output = epath.Path(options.output).expanduser()
  corpus = suites.Corpus(tuple(options.corpus), options.workers) if options.corpus else None
  settings = (options.data, options.shots, options.limit, options.stride, corpus)
  suite = suites.Suite(tasks, output, *settings, templates=options.templates, min_k=options.min_k)
  with processes.joined(), main_process_output():
    loaded = storage.open(options.workdir, options.step).load(overrides=overrides)
    show(suites.table(suites.evaluate(loaded, suite)))
  return 0
