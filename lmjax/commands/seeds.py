"""Train a config with several seeds; report mean, standard deviation and failed runs.

lmjax seeds --config configs/glue.py:task=rte,start=... --seeds 0:10 --workdir runs/rte

Each run has a folder of its own, WORKDIR/SEED, and is evaluated at its best checkpoint by config.checkpoint.metric. Run
the same command again to resume; finished runs are not repeated. A run has failed if its metric is at or below that of
the most frequent class, or if it diverged.
"""

import copy
import json
import math
import statistics
from typing import Any

import jax
from etils import epath

from lmjax import config as configs
from lmjax import storage
from lmjax.commands.options import new_parser, parse_overrides
from lmjax.inference.evaluate import evaluate, make_evaluation
from lmjax.logs import console
from lmjax.parallel import processes
from lmjax.storage.run import best_step
from lmjax.train import train
from lmjax.utils import files
from lmjax.utils.errors import DivergedError, UserError
from lmjax.utils.fields import Fields

SCORES = "best.json"  # of the best checkpoint of a run
MAJORITY = "_majority_"  # in the name of the score of the most frequent class
MOST = 10_000  # seeds of one command


def main(arguments: list[str]) -> int:
  """Runs `lmjax seeds`."""
  parser = new_parser("seeds", __doc__)
  parser.add_argument("--config", required=True, help="configs/NAME.py[:variant,...], or a run's config.json")
  parser.add_argument("--workdir", required=True, help="the folder of the runs' folders")
  parser.add_argument("--seeds", default="0:3", help="FIRST:END, or numbers separated by commas")
  options, overrides = parse_overrides(parser, arguments)
  seeds, results = parse_seeds(options.seeds), {}
  settings = configs.load(options.config, overrides)  # once, as its file may change while the runs train
  with processes.joined():
    for seed in seeds:
      folder = epath.Path(options.workdir) / str(seed)
      try:
        if code := train(copy.deepcopy(settings) | {"seed": seed}, folder):
          return code
        results[seed] = _scores(folder)
      except DivergedError as error:
        console.print(f"seed {seed}: {error}", markup=False)
        results[seed] = {}
      jax.clear_caches()  # each run compiles its own step
  report = summarize(results, settings["checkpoint"].get("metric", "validation_loss"))
  if jax.process_index() == 0:
    files.write(epath.Path(options.workdir) / "seeds.json", json.dumps(report, indent=2) + "\n")
    for name, (mean, deviation) in report["metrics"].items():
      console.print(f"{name} {mean:.4f} ± {deviation:.4f}", markup=False)
    console.print(f"{len(seeds)} runs, {len(report['failed'])} failed {report['failed'] or ''}".rstrip(), markup=False)
  return 0


def parse_seeds(text: str) -> list[int]:
  """Returns the seeds of `0:3` or `1,5,7`.

  Raises:
    UserError: the text has another form.
  """
  try:
    first, colon, end = text.partition(":")
    seeds = range(int(first or 0), int(end)) if colon else [int(part) for part in text.split(",")]
    right = 0 < len(seeds) <= MOST and min(seeds) >= 0 and max(seeds) < 2**63 and len(set(seeds)) == len(seeds)
  except (ValueError, OverflowError):
    right = False
  if not right:
    raise UserError(f"--seeds {text}: give FIRST:END, or different numbers separated by commas, at most {MOST:,}")
  return list(seeds)


def _scores(folder: epath.Path) -> dict[str, float]:
  """Returns the evaluation of a run's best checkpoint, which is kept beside it until there is a better one."""
  if (folder / SCORES).exists():
    fields = Fields(files.read_json(folder / SCORES), folder / SCORES)
    scores = {key: fields.number(key) for key in fields.values}
  if not (folder / SCORES).exists() or scores.get("step") != best_step(folder):
    loaded = storage.open(folder, storage.BEST).load()
    scores = evaluate(loaded, make_evaluation(loaded, folder, None, {}))
    scores = {key: value for key, value in scores.items() if math.isfinite(value)}
    if jax.process_index() == 0:
      files.write(folder / SCORES, json.dumps(scores, indent=2) + "\n")
  return scores


def summarize(results: dict[int, dict[str, float]], metric: str) -> dict[str, Any]:
  """Returns {"metrics": {name: (mean, standard deviation)}, "failed": seeds, "runs": results}.

  Args:
    results: the scores by seed; none of a run that diverged, which has failed.
    metric: the one that decides whether a run has failed, as in config.checkpoint.metric.
  """
  ended = [scores for scores in results.values() if scores]
  first = ended[0] if ended else {}
  names = [key for key in first if key != "step" and not key.endswith(("_low", "_high")) and MAJORITY not in key]
  metrics = {}
  for key in names:
    values = [scores[key] for scores in ended if math.isfinite(scores.get(key, math.nan))] or [math.nan]
    metrics[key] = statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else 0.0
  failed = [seed for seed, scores in results.items() if _has_failed(scores, metric)]
  return {"metrics": metrics, "failed": failed, "runs": results}


def _has_failed(scores: dict[str, float], metric: str) -> bool:
  """Returns whether a run diverged, or is not better than the most frequent class."""
  name = metric.removeprefix("-")
  value = scores.get(name, math.nan)
  majority = next((scores[key] for key in scores if MAJORITY in key and key.replace(MAJORITY, "_", 1) == name), 0.0)
  return not (value > majority if metric.startswith("-") else math.isfinite(value))
