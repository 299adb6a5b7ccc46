"""Write what a teacher predicts of the rows of a run, so that its students need not ask it.

    lmjax teacher --config configs/distill.py:teacher=runs/gpt2 --output scores --top 32
    lmjax train --config configs/distill.py:teacher=runs/gpt2 --workdir runs/small \\
      --config.task.kind=lmjax.tasks.replay:Replay --config.task.scores=scores --config.task.top=32

Of each token or row, the most probable words or classes are kept, with their probabilities. Data, seed, batch, length
and steps are those of the config, and of the run that reads the folder. Repeat the command to resume.
"""

from lmjax import config as configs
from lmjax.commands.options import new_parser, parse_overrides
from lmjax.inference.teacher import write_predictions
from lmjax.logs import console


def main(arguments: list[str]) -> int:
  """Runs `lmjax teacher`."""
  parser = new_parser("teacher", __doc__)
  parser.add_argument("--config", required=True, help="configs/NAME.py[:variant,...], or a run's config.json")
  parser.add_argument("--output", required=True, help="the folder to write, or to continue")
  parser.add_argument("--top", type=int, least=1, default=32, help="words or classes of each token or row")
  options, overrides = parse_overrides(parser, arguments)
  batches = write_predictions(configs.load(options.config, overrides), options.output, options.top)
  console.print(f"{options.output}: {batches:,} batches")
  return 0
