"""Show the parameters of a saved model as a table, from metadata alone.

lmjax show runs/gpt2
lmjax show runs/gpt2 --pattern attention --values
lmjax show path/to/huggingface/folder --depth 3
lmjax show runs/gpt2 --verify
"""

from lmjax import storage
from lmjax.commands.options import new_parser, parse, refuse
from lmjax.commands.values import add_step
from lmjax.inference.output import show
from lmjax.inference.table import table
from lmjax.inference.verify import verify
from lmjax.logs import console


def main(arguments: list[str]) -> int:
  """Runs `lmjax show`."""
  parser = new_parser("show", __doc__)
  parser.add_argument("path", help="a run folder, a checkpoint, a GGUF file, or a Hugging Face or bilm-tf folder")
  add_step(parser)
  parser.add_argument("--depth", type=int, least=1, help="group parameters by so many parts of names; default none")
  parser.add_argument("--pattern", default="", help="a regular expression that names must match")
  parser.add_argument("--values", action="store_true", help="read the parameters, for their norms and zeros")
  parser.add_argument("--verify", action="store_true", help="compare files with their checksums, read all weights")
  options = parse(parser, arguments)
  refuse(parser, options, {"verify": "step depth pattern values"})
  if options.verify:
    verify(options.path, console.print)
    return 0
  show(table(storage.open(options.path, options.step), options.depth, options.pattern, options.values).rich())
  return 0
