"""Train a model, or resume a run.

    lmjax train --config configs/gpt2.py:size=124m --workdir runs/gpt2 --config.optim.peak_lr=3e-4

Run the same command with the same --workdir to resume.
"""

from etils import epath

from lmjax import config as configs
from lmjax.commands.options import new_parser, parse_overrides
from lmjax.parallel import processes
from lmjax.train import train
from lmjax.utils.errors import UserError
from lmjax.utils.files import make_folder


def main(arguments: list[str]) -> int:
  """Runs `lmjax train`."""
  parser = new_parser("train", __doc__)
  parser.add_argument("--config", required=True, help="configs/NAME.py[:variant,...], or a run's config.json")
  parser.add_argument("--workdir", required=True, help="the run folder; a run in it is resumed")
  parser.add_argument("--profile", metavar="FIRST:LAST", help="write a jax.profiler trace of these steps")
  parser.add_argument("--take_over", action="store_true", help="gs://...: do not wait for a killed run's lease")
  options, overrides = parse_overrides(parser, arguments)
  profile = None
  if options.profile:
    try:
      profile = tuple(int(step) for step in options.profile.split(":"))
      first, last = profile
    except ValueError as error:
      raise UserError(f"--profile {options.profile}: give two steps, FIRST:LAST") from error
    if not 0 < first <= last:
      raise UserError(f"--profile {options.profile}: FIRST must be at least 1 and not after LAST")
    make_folder(epath.Path(options.workdir) / "profile")  # found to be writable before the run
  settings = configs.load(options.config, overrides)
  with processes.joined():
    return train(settings, options.workdir, profile, options.take_over)
