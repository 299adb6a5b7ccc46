"""Find lottery tickets: train, remove the smallest weights, rewind the others, train again.

    lmjax lottery --config configs/lottery.py --workdir runs/lottery --rounds 8 --rate 0.2 --seeds 0:5
    lmjax lottery --config configs/lottery.py --workdir runs/late --rewind 100

Every round removes a fraction of the remaining weights (Frankle and Carbin, 2019, arXiv:1803.03635). The arms of a
round are ordinary runs in WORKDIR/SEED/ROUND/ARM: the ticket; its mask with new weights; its weights with a random
mask; and, as round 0, the dense model. Run the same command again to resume; finished runs are not repeated. Results
are in lottery.json and lottery.png.
"""

import argparse
import copy
import json
from typing import Any

import jax
from etils import epath

from lmjax import config as configs
from lmjax.commands.options import new_parser, parse_overrides
from lmjax.commands.seeds import parse_seeds
from lmjax.inference import lottery
from lmjax.inference.lottery import CONTROLS, DENSE, TICKET, Rates
from lmjax.inference.output import show
from lmjax.train import train
from lmjax.utils import files, trust
from lmjax.utils.errors import UserError

FRESH = 1_000_003  # added to the seed of new weights and of random masks


def main(arguments: list[str]) -> int:
  """Runs `lmjax lottery`."""
  parser = new_parser("lottery", __doc__)
  parser.add_argument("--config", required=True, help="configs/NAME.py[:variant,...], or a run's config.json")
  parser.add_argument("--workdir", required=True, help="the folder of the runs' folders")
  parser.add_argument("--rounds", type=int, default=8, help="after that of the dense model")
  rate = "of the remaining weights of kernels whose path matches; default ^model/=0.2"
  parser.add_argument("--rate", action="append", default=[], metavar="[PATTERN=]RATE", help=rate)
  parser.add_argument("--structure", choices=("layer", "global"), default="layer", help="what is ranked together")
  parser.add_argument("--rewind", type=int, default=0, help="the step whose weights a round starts from")
  parser.add_argument("--seeds", default="0:1", help="FIRST:END, or numbers separated by commas")
  parser.add_argument("--controls", default=",".join(CONTROLS), help="arms besides the ticket; empty for none")
  parser.add_argument("--metric", default="validation_loss", help="of an evaluator; after a minus, the highest is best")
  options, overrides = parse_overrides(parser, arguments)
  rates, workdir = Rates.parse(options.rate, options.structure), epath.Path(options.workdir)
  arms = [TICKET, *filter(None, options.controls.split(","))]
  if unknown := [arm for arm in arms[1:] if arm not in CONTROLS]:
    raise UserError(f"lottery: --controls are {' and '.join(CONTROLS)}, not {unknown[0]!r}")
  settings = configs.load(options.config, overrides)
  if options.rounds < 1 or not 0 <= options.rewind < settings["steps"]:
    raise UserError(f"lottery: --rounds is at least 1, and --rewind from 0 to below {settings['steps']} steps")
  with trust.trusting(*trust.named(settings)):  # the runs name the classes of the user's own config
    return _run(options, settings, workdir, rates, arms)


def _run(options: argparse.Namespace, settings: dict, workdir: epath.Path, rates: Rates, arms: list[str]) -> int:
  """Trains what is not trained, writes and prints the results, and returns the exit code."""
  lottery.check_before(settings, rates, options.metric)
  seeds, rows = parse_seeds(options.seeds), list[dict[str, Any]]()
  keep_settings = lottery.settings_of(workdir, rates, options.rewind)
  for seed in seeds:
    runs = _Seed(settings | {"seed": seed}, workdir / str(seed), rates, options.rewind, options.metric)
    for number in range(options.rounds + 1):
      for arm in arms if number else [DENSE]:
        if code := runs.train(number, arm):
          return code
        rows.append({"seed": seed, "round": number} | runs.row(number, arm))
        jax.clear_caches()  # each run compiles its own step
        keep_settings()
        files.write(workdir / "lottery.json", json.dumps(rows, indent=2) + "\n")
  lottery.plot(rows, options.metric.removeprefix("-"), workdir / "lottery.png")
  show(lottery.comparison(rows, options.metric.removeprefix("-")).rich())
  return 0


class _Seed:
  """The runs of one seed."""

  def __init__(self, settings: dict[str, Any], folder: epath.Path, rates: Rates, rewind: int, metric: str):
    self.settings, self.folder, self.rates, self.rewind, self.metric = settings, folder, rates, rewind, metric
    self.dense = folder / "0" / DENSE

  def train(self, number: int, arm: str) -> int:
    """Trains an arm of a round, and returns the exit code."""
    settings = copy.deepcopy(self.settings)
    if arm == DENSE:
      if self.rewind:  # its checkpoint must stay
        settings["checkpoint"] |= {"every": self.rewind, "keep": -(-settings["steps"] // self.rewind)}
      return train(settings, self.dense)
    start = self.folder / str(number) / f"{arm}_start"
    if not start.exists():
      fresh = lottery.new_weights(self.settings | {"seed": self.settings["seed"] + FRESH}, self.dense, True)
      rewound, at = self.rewind, self.dense
      weights = lottery.weights_of(at, rewound) if rewound else lottery.new_weights(self.settings, at)
      seed = self.settings["seed"] + FRESH + number
      lottery.write_start(start, self.dense, arm, weights, self.masks(number), fresh, seed)
    settings |= {"start": {"path": str(start), "new": "^$"}}
    settings |= {"transform": {"kind": "lmjax.compression.keep_zeros:KeepZeros", "targets": "kernel$"}}
    return train(settings, self.folder / str(number) / arm)

  def masks(self, number: int) -> dict[str, jax.Array]:
    """Returns the masks of a round, from the weights at the end of the round before."""
    before = self.dense if number == 1 else self.folder / str(number - 1) / TICKET
    return lottery.masks_after(before, self.rates, number) if number else {}

  def row(self, number: int, arm: str) -> dict[str, Any]:
    """Returns what is compared of a finished run."""
    limit = list(lottery.curve(self.dense, self.metric).values())[-1]
    values = lottery.curve(self.folder / str(number) / arm, self.metric)
    kept = lottery.remaining(self.masks(number))
    return {
      "arm": arm,
      "remaining": kept,
      "loss": list(values.values())[-1],
      "best": lottery.better(self.metric)(values.values()),
      "steps": lottery.steps_to(values, limit, self.metric),
    }
