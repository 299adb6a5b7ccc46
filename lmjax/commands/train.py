"""Train a model, or resume a run.

    lmjax train --config configs/gpt2.py:size=124m --workdir runs/gpt2 --config.optim.peak_lr=3e-4

Run the same command with the same --workdir to resume.
"""

import os

import jax
from etils import epath

from lmjax import config as configs
from lmjax.commands.options import new_parser, parse_overrides
from lmjax.parallel import processes
from lmjax.state import TrainState
from lmjax.train import train
from lmjax.utils.errors import UserError, reason
from lmjax.utils.files import make_folder, new_folder, part_of


class Profile:
  """Writes a trace of jax.profiler of the steps from `first` to `last` into a run folder."""

  def __init__(self, workdir: epath.PathLike, first: int, last: int):
    self._folder, self._first, self._last = epath.Path(workdir).expanduser() / "profile", first, last
    self._runs = False
    make_folder(self._folder)  # found to be writable before the run

  def __call__(self, step: int, state: TrainState) -> None:
    """Starts or stops the trace after a step.

    Raises:
      UserError: it cannot be written.
    """
    if step + 1 == self._first:
      jax.profiler.start_trace(os.fspath(part_of(self._folder)))
      self._runs = True
    elif step == self._last and self._runs:
      jax.block_until_ready(state)
      try:
        with new_folder(self._folder):
          jax.profiler.stop_trace()
      except RuntimeError as error:  # what jax makes of an error of the file system
        raise UserError(f"{self._folder} could not be written: {reason(error)}") from error


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
      first, last = (int(step) for step in options.profile.split(":"))
    except ValueError as error:
      raise UserError(f"--profile {options.profile}: give two steps, FIRST:LAST") from error
    if not 0 < first <= last:
      raise UserError(f"--profile {options.profile}: FIRST must be at least 1 and not after LAST")
    profile = Profile(options.workdir, first, last)
  settings = configs.load(options.config, overrides)
  with processes.joined():
    return train(settings, options.workdir, profile, options.take_over)
