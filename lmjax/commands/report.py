"""Write one HTML page about one run or several side by side, which needs no network.

lmjax report runs/gpt2
lmjax report runs/first runs/second --output comparison.html

It shows what differs between the configs, the curves of all metrics, generated samples by step, the scores of suites
whose results are in the run folders, and how the time and the energy were spent, with the cost at --price.
"""

from lmjax.commands.options import new_parser, parse
from lmjax.commands.values import new_file
from lmjax.inference.report import render
from lmjax.logs import console
from lmjax.utils.files import write


def main(arguments: list[str]) -> int:
  """Runs `lmjax report`."""
  parser = new_parser("report", __doc__)
  parser.add_argument("folders", nargs="+", help="run folders")
  parser.add_argument("--output", type=new_file, default="report.html", help="the page; default report.html")
  parser.add_argument("--price", type=float, help="dollars per device and hour; default the list price of the device")
  options = parse(parser, arguments)
  write(options.output, render(options.folders, options.price))
  console.print(options.output)
  return 0
