"""Searches config keys with Optuna; every trial is a run folder, and the bill of the search is printed.

    python launch/search.py --workdir runs/search --trials 48 --sampler tpe --prune \
      --space optim.peak_lr=1e-4:1e-2:log --space model.depth=2,4,6 -- --config configs/quickstart.py

The smallest --metric is best. --sampler: random, tpe or evolution. --budget ends the search after steps=N, flops=N or
kwh=N of all trials together. --storage is the URL of a database that many machines share. An interrupted search is
resumed by the same command, and so are its trials. Needs pip install 'lmjax[search]'.
"""

import argparse
import importlib.util
import sys

from lmjax.commands.options import new_parser, parse, parse_overrides
from lmjax.inference import search
from lmjax.inference.grid import check
from lmjax.planning.energy import INTENSITY
from lmjax.utils.errors import UserError
from lmjax.utils.files import expand, make_folder


def read_options() -> tuple[argparse.Namespace, list[str]]:
  cut = sys.argv.index("--") if "--" in sys.argv else len(sys.argv)
  parser = new_parser("search", __doc__)
  add = parser.add_argument
  add("--workdir", required=True)
  add("--space", action="append", required=True, help="KEY=LOW:HIGH, KEY=LOW:HIGH:log or KEY=VALUE,VALUE")
  add("--trials", type=int, least=1, default=20)
  add("--sampler", choices=search.SAMPLERS, default="tpe")
  add("--seed", type=int, default=0)
  add("--metric", default="validation_loss", help="of metrics.jsonl")
  add("--prune", action="store_true", help="end trials that are worse than the median of the others at a step")
  add("--budget", help="steps=N, flops=N or kwh=N of all trials together")
  add("--storage", help="the URL of a database; default a file in the folder")
  add("--watts", type=float, help="of the machine, where the energy of runs is not measured")
  add("--price", type=float, help="dollars per hour")
  add("--region", choices=tuple(INTENSITY), help="whose carbon intensity counts; default the paper's")
  return parse(parser, sys.argv[1:cut]), sys.argv[cut + 1 :]


def main() -> int:
  options, arguments = read_options()
  if importlib.util.find_spec("optuna") is None:
    raise UserError("search: needs optuna; pip install 'lmjax[search]'")
  axes = [search.read_axis(text) for text in options.space]
  limit = search.read_budget(options.budget) if options.budget else None
  parser = new_parser("train", "")
  parser.add_argument("--config", required=True)
  given, overrides = parse_overrides(parser, arguments)
  check(given.config, overrides | {a.key: a.choices[0] if a.choices else f"{a.high:.6g}" for a in axes})
  folder = expand(options.workdir)
  make_folder(folder)
  storage = options.storage or f"sqlite:///{folder.absolute()}/study.db"
  study = search.make_study(storage, folder.name, axes, options.sampler, options.seed, options.prune)
  command = [sys.executable, "-m", "lmjax", "train", *arguments]
  run = search.Trials(folder, command, axes, options.metric, options.prune)

  whole = search.run_trials(study, run, options.trials, limit, options.watts)
  best = study.best_trial
  print(f"best: {options.metric} {best.value:.4f} in {folder / best.user_attrs['folder']}")
  one = search.used(folder / best.user_attrs["folder"], options.watts)
  rows = search.bill(one, whole, options.price, options.region)
  for cells in (("", "one training", "the search", "times"), *rows):
    print("".join(cell.ljust(16) for cell in cells).rstrip())
  return 0


if __name__ == "__main__":
  try:
    sys.exit(main())
  except UserError as error:
    print(f"lmjax: {error}", file=sys.stderr)
    sys.exit(2)
