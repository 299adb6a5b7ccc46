"""Runs a grid of configs, one after the other; finished runs are skipped.

    python launch/sweep.py --workdir runs/sweep --grid optim.peak_lr=1e-3,3e-3 --grid model.depth=4,8 -- \
      --config configs/quickstart.py
    python launch/sweep.py ... --dry-run

Every run has its own folder, named after its values. A run is finished if its summary.json says when; an interrupted
run is resumed. At the end, the runs are listed by validation loss.
"""

import argparse
import itertools
import pathlib
import shlex
import subprocess
import sys

from lmjax.commands.options import new_parser, parse_overrides
from lmjax.inference.grid import check, finished, folder_of, values_of
from lmjax.utils.errors import UserError
from lmjax.utils.fields import Fields
from lmjax.utils.files import read_json


def main() -> int:
  arguments = sys.argv[1:]
  cut = arguments.index("--") if "--" in arguments else len(arguments)
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
  parser.add_argument("--workdir", required=True, type=pathlib.Path)
  parser.add_argument(
    "--grid", action="append", required=True, metavar="KEY=VALUE,VALUE", help="a config key and its values"
  )
  parser.add_argument("--topology", help="plan every run for these devices first, and skip those that do not fit")
  parser.add_argument("--dry-run", action="store_true")
  options = parser.parse_args(arguments[:cut])
  axes = []
  for axis in options.grid:
    key, equals, values = axis.partition("=")
    if not equals or not values:
      raise UserError(f"--grid {axis} must be KEY=VALUE,VALUE")
    axes.append([(key, value) for value in values_of(values)])
  worst, losses = 0, {}
  parser = new_parser("train", "")
  parser.add_argument("--config", required=True)
  given, overrides = parse_overrides(parser, arguments[cut + 1 :])
  for point in itertools.product(*axes):
    check(given.config, overrides | dict(point))
  for point in itertools.product(*axes):
    folder = options.workdir.expanduser() / folder_of(point)
    run = [*arguments[cut + 1 :], *(f"--config.{key}={value}" for key, value in point)]
    train = [sys.executable, "-m", "lmjax", "train", *run, "--workdir", str(folder)]
    plan = [sys.executable, "-m", "lmjax", "plan", *run, "--topology", options.topology] if options.topology else None
    if not finished(folder):
      for command in filter(None, (plan, train)):
        print(shlex.join(command), flush=True)
        code = 0 if options.dry_run else subprocess.run(command).returncode
        worst = max(worst, abs(code))
        if code:
          break
    if finished(folder):
      summary = Fields(read_json(folder / "summary.json"), folder / "summary.json")
      losses[folder.name] = summary.number("validation_loss", None)
  for name, loss in sorted(losses.items(), key=lambda item: (item[1] is None, item[1])):
    print(f"{loss if loss is None else format(loss, '.4f')}  {name}")
  return worst


if __name__ == "__main__":
  try:
    sys.exit(main())
  except UserError as error:
    print(f"lmjax: {error}", file=sys.stderr)
    sys.exit(2)
