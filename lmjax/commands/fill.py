"""Predict masked tokens with a masked language model.

lmjax fill --workdir runs/bert 'Jim made [MASK] for his girlfriend and [MASK] was very proud!'
"""

from rich.table import Table
from rich.text import Text

from lmjax import storage
from lmjax.commands.options import new_parser, parse
from lmjax.commands.values import add_step
from lmjax.inference.fill_mask import MASK, candidates, mask_token
from lmjax.logs import console
from lmjax.parallel.sharding import use_layout
from lmjax.tasks.masked_lm import MaskedLM
from lmjax.utils.errors import UserError, one_line


def main(arguments: list[str]) -> int:
  """Runs `lmjax fill`."""
  parser = new_parser("fill", __doc__)
  parser.add_argument("text", nargs="+", help=f"one or more sentences with {MASK}, or the model's own mask, in them")
  parser.add_argument("--workdir", required=True, help="the run folder, a Hugging Face folder, or hf:owner/name")
  add_step(parser)
  parser.add_argument("--top", type=int, least=1, default=5, help=f"predictions of each {MASK}")
  options = parse(parser, arguments)
  loaded = storage.open(options.workdir, options.step).load()
  task, tokenizer = loaded.task, loaded.tokenizer
  if not isinstance(task, MaskedLM):
    raise UserError(f"fill: {options.workdir} has no masked-LM head: its task is {type(task).__name__}")
  if getattr(tokenizer, "mask", None) is None:
    raise UserError(f"fill: the tokenizer of {options.workdir} has no mask token")
  if not 1 <= options.top <= tokenizer.size:
    raise UserError(f"fill: --top must be from 1 to {tokenizer.size}, not {options.top}")
  mask = mask_token(tokenizer)
  with use_layout(loaded.layout):
    for text in options.text:
      _print(mask, text, *candidates(task, tokenizer, loaded.params, text, loaded.length, options.top))
  return 0


def _print(mask: str, text: str, predictions: list[list[tuple[str, float]]], filled: str) -> None:
  table = Table(title=Text(one_line(text)), title_justify="left")
  for number in range(len(predictions)):
    table.add_column(f"{mask} {number + 1}")
    table.add_column("p", justify="right")
  for row in zip(*predictions, strict=True):
    table.add_row(*[Text(one_line(cell)) for token, p in row for cell in (token, f"{p:.3f}")])
  console.print(table)
  console.print(one_line(filled, len(filled) * 10))
