"""The runs in a folder: their steps, losses, states and sizes, compared in a table and one plot.

lmjax runs runs
lmjax runs runs/sweep runs/text --plot losses.png
"""

import datetime

from rich.table import Table
from rich.text import Text

from lmjax.commands.options import new_parser, parse
from lmjax.commands.values import new_file
from lmjax.curves import save_curves
from lmjax.inference.output import show
from lmjax.inference.runs import find, state_of
from lmjax.logs import console, read_metrics
from lmjax.utils.errors import UserError


def main(arguments: list[str]) -> int:
  """Runs `lmjax runs`."""
  parser = new_parser("runs", __doc__)
  parser.add_argument("folders", nargs="+", help="run folders, or folders of such")
  parser.add_argument("--plot", type=new_file, help="a PNG file for the losses of all runs over their steps")
  options = parse(parser, arguments)
  runs = find(options.folders)
  if not runs:
    raise UserError(f"runs: no folder in {', '.join(options.folders)} has a config.json and metrics.jsonl")
  table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
  for column in ("run", "state", "step", "train", "validation", "best", "size", "changed"):  # losses in the middle
    side = "left" if column in ("run", "state") else "right"
    table.add_column(column, justify=side, overflow="fold", no_wrap=column != "run")
  for name, folder in runs.items():
    state = state_of(folder)
    numbers = (state.train_loss, state.validation_loss)
    losses = [f"{value:.4f}" if value is not None else "" for value in numbers]
    best = f"{state.best[1]:.4f} @ {state.best[0]:,}" if state.best else ""
    changed = datetime.datetime.fromtimestamp(state.changed).strftime("%m-%d %H:%M")
    step = f"{state.step:,}/{state.steps:,}"
    table.add_row(Text(name), state.state, step, *losses, best, f"{state.bytes / 1e6:,.1f} MB", changed)
  show(table)
  if options.plot:
    save_curves({name: read_metrics(folder) for name, folder in runs.items()}, options.plot)
    console.print(f"{options.plot}: the losses of {len(runs)} runs")
  return 0
