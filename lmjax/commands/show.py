"""The parameters of a checkpoint as a table, from metadata alone.

lmjax show runs/gpt2
lmjax show runs/gpt2 --pattern attention --values
lmjax show path/to/huggingface/folder --depth 3
"""

import argparse

from lmjax import config as configs
from lmjax.inference.table import table
from lmjax.logs import show
from lmjax.storage.saved import open_checkpoint


def main(arguments: list[str]) -> int:
  """Runs `lmjax show`."""
  parser = argparse.ArgumentParser(
    prog="lmjax show", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
  )
  parser.add_argument("path", help="a run folder, or one in Hugging Face's format")
  parser.add_argument("--step", type=int, help="the checkpoint, by its step; default the newest")
  parser.add_argument("--depth", type=int, help="parts of a name that make a row; default all")
  parser.add_argument("--pattern", default="", help="a regular expression searched in names")
  parser.add_argument("--values", action="store_true", help="norms and zeros too: reads the parameters")
  options = configs.parse(parser, arguments)
  saved = open_checkpoint(options.path, options.step)
  show(table(saved, options.depth, options.pattern, options.values).drawn())
  return 0
