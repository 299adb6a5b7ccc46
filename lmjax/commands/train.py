"""Train a model, or continue a run.

    lmjax train --config configs/gpt2.py:size=124m --workdir runs/gpt2 --config.optim.peak_lr=3e-4

The same command on the same folder goes on where it stopped.
"""

import argparse

from lmjax import config as configs
from lmjax.train import train
from lmjax.utils.errors import UserError


def main(arguments: list[str]) -> int:
  """Runs `lmjax train`."""
  parser = argparse.ArgumentParser(
    prog="lmjax train", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
  )
  parser.add_argument("--config", required=True, help="configs/NAME.py[:variant,...], or a run's config.json")
  parser.add_argument("--workdir", required=True, help="the run folder; going on if it holds a run")
  parser.add_argument("--profile", metavar="FIRST:LAST", help="write a jax.profiler trace of these steps")
  options, overrides = configs.parse_overrides(parser, arguments)
  profile = None
  if options.profile:
    try:
      profile = tuple(int(step) for step in options.profile.split(":"))
      first, last = profile
    except ValueError as error:
      raise UserError(f"--profile {options.profile}: give two steps, FIRST:LAST") from error
    if not 0 < first <= last:
      raise UserError(f"--profile {options.profile}: the first step is at least 1 and not behind the last")
  return train(configs.load(options.config, overrides), options.workdir, profile)
