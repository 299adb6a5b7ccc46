"""The values of options, numbers in a range and paths, and how their help is written."""

import argparse
import math
import os
import re
import textwrap
from collections.abc import Callable

from lmjax.utils.errors import UserError
from lmjax.utils.fields import LARGEST, LARGEST_FLOAT
from lmjax.utils.files import expand, is_remote


def number(kind: type, least: float = 0, most: float | None = None) -> Callable[[str], float]:
  """Returns what reads an int or a float of an option, which must be finite and in a range."""
  most = most if most is not None else LARGEST if kind is int else LARGEST_FLOAT

  def read(text: str) -> float:
    what = "a whole number" if kind is int else "a number"
    try:
      value = kind(text)
    except (ValueError, OverflowError):
      raise argparse.ArgumentTypeError(f"{text!r} is not {what}") from None
    if isinstance(value, float) and not math.isfinite(value):
      raise argparse.ArgumentTypeError(f"must be a finite number, not {text}")
    if not least <= value <= most:
      top = f" and at most {most:,}" if most not in (LARGEST, LARGEST_FLOAT) or value > most else ""
      raise argparse.ArgumentTypeError(f"must be {what} of at least {least:,}{top}, not {text}")
    return value

  return read


def some_path(text: str) -> str:
  """Returns a path as `home` does, which is not empty, as that of a variable without a value would be."""
  if not text:
    raise argparse.ArgumentTypeError("is empty")
  return home(text)


def home(text: str) -> str:
  """Returns a path whose ~ is expanded, which shells do not do in --workdir=~/x."""
  return os.fspath(expand(text)) if text.startswith("~") else text


def new_file(text: str) -> str:
  """Returns the path of a file to write, whose folder must be there, which is noticed before the work."""
  path = expand(text)
  if not is_remote(path) and not path.parent.is_dir():
    raise UserError(f"{path} cannot be written: the folder {path.parent} does not exist")
  return os.fspath(path)


def add_step(parser: argparse.ArgumentParser) -> None:
  """Adds the options that choose the checkpoint of a run, as `step`; one of them at most."""
  group = parser.add_mutually_exclusive_group()
  group.add_argument("--step", type=number(int), help="of a run: the step of the checkpoint; default the latest")
  best = "of a run: the best checkpoint, by config.checkpoint.metric"
  group.add_argument("--best", action="store_const", const="best", dest="step", help=best)


class Help(argparse.RawTextHelpFormatter):
  """Help whose prose and lines of options fit the terminal, and whose examples stay as they are, to be copied."""

  def _split_lines(self, text: str, width: int) -> list[str]:
    return text.splitlines() if "\n" in text else argparse.HelpFormatter._split_lines(self, text, width)

  def _fill_text(self, text: str, width: int, indent: str) -> str:
    blocks: list[str] = []
    for line in text.strip().splitlines():
      prose = line[:1].isalpha() and not line.startswith(("lmjax ", "echo "))
      if prose and blocks and blocks[-1][:1].isalpha() and not blocks[-1].endswith(":"):
        blocks[-1] += " " + line  # of the same paragraph
      else:
        blocks.append(line)
    filled = []
    for block in blocks:
      option = re.match(r" +(--|/)\S+( [A-Z]+)? {2,}|(?= {10,})", block)
      hang = " " * (option.end() or len(block) - len(block.lstrip())) if option else ""
      copied = not block or block.startswith(("    ", "lmjax ", "echo ")) and not option
      filled += [block] if copied else textwrap.wrap(block, width, subsequent_indent=hang, break_on_hyphens=False)
    return "\n".join(indent + line for line in filled)
