"""Find the words behind [MASK].

lmjax fill --workdir runs/bert "Jim made [MASK] for his girlfriend and [MASK] was very proud!"
"""

import argparse

from rich.table import Table

from lmjax import config as configs
from lmjax.inference.fill_mask import MASK, candidates
from lmjax.logs import console
from lmjax.parallel.sharding import use_layout
from lmjax.storage.loading import load_model
from lmjax.tasks.masked_lm import MaskedLM
from lmjax.utils.errors import UserError


def main(arguments: list[str]) -> int:
  """Runs `lmjax fill`."""
  parser = argparse.ArgumentParser(
    prog="lmjax fill", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
  )
  parser.add_argument("text", nargs="+", help=f"a text with {MASK} in it; may be several")
  parser.add_argument("--workdir", required=True, help="the run folder")
  parser.add_argument("--step", type=int, help="the checkpoint, by its step; default the newest")
  parser.add_argument("--top", type=int, default=5, help="candidates of each place")
  options = configs.parse(parser, arguments)
  opened = load_model(options.workdir, options.step)
  task, tokenizer = opened.task, opened.tokenizer
  if not isinstance(task, MaskedLM):
    raise UserError(f"fill: {options.workdir} has no masked-LM head: its task is {type(task).__name__}")
  if getattr(tokenizer, "mask", None) is None:
    raise UserError(f"fill: the tokenizer of {options.workdir} has no token that masks")
  if not 1 <= options.top <= tokenizer.size:
    raise UserError(f"fill: --top is from 1 to {tokenizer.size}, not {options.top}")
  with use_layout(opened.layout):
    for text in options.text:
      _print(text, *candidates(task, tokenizer, opened.params, text, opened.length, options.top))
  return 0


def _print(text: str, found: list[list[tuple[str, float]]], filled: str) -> None:
  table = Table(title=text, title_justify="left")
  for number in range(len(found)):
    table.add_column(f"{MASK} {number + 1}")
    table.add_column("p", justify="right")
  for rank in range(len(found[0])):
    table.add_row(*[cell for place in found for cell in (place[rank][0], f"{place[rank][1]:.3f}")])
  console.print(table, markup=False)
  console.print(filled, markup=False)
