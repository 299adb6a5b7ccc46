"""The options of commands: their own, and `--config.key=value`, which every command that has a config takes."""

import argparse
import functools
import importlib
from collections.abc import Mapping
from typing import Any

from lmjax.commands.values import Help, home, number, some_path
from lmjax.utils.errors import UserError, did_you_mean

# The options whose values are texts; all others may be paths.
TEXTS = ("text", "controls", "measure", "prompt", "prompt_name", "stop", "pattern", "targets", "turn", "system")
PARSER = "--parser"  # the argument that asks for the parser of a command
Rules = Mapping[str, str]
NOTHING: Rules = {}
EVERY = """options of every command:
  --devices N      simulate N devices on the CPU
  --debug_nans     stop at the operation that produces the first NaN
  --traceback      print the traceback of an error
  --trust          let folders name classes that are not lmjax's own, whose code then runs; see SECURITY.md"""
OF_CONFIGS = """  --config.KEY=VALUE
                   set a key of the config, such as --config.optim.peak_lr=3e-4; lmjax configs NAME lists the keys"""


class Parser(argparse.ArgumentParser):
  """A parser whose numbers are finite and in a range, whose paths may start with ~/, and whose help has the defaults.

  `add_argument` takes two more arguments, `least` (default 0) and `most`, for an option whose type is int or float.
  """

  def add_argument(self, *flags: str, least: float = 0, most: float | None = None, **settings: Any) -> argparse.Action:
    """Adds an option, see argparse."""
    kind, default = settings.get("type"), settings.get("default")
    if kind in (int, float):
      settings["type"] = number(kind, least, most)
    elif settings.get("action") in (None, "append") and not {"type", "choices"} & settings.keys():
      path = home if default == "" else some_path  # argparse reads a default, too
      settings["type"] = str if flags[-1].lstrip("-") in TEXTS else path
    unsaid = default not in (None, "", [], argparse.SUPPRESS) and not isinstance(default, bool)
    if unsaid and "default" not in settings.get("help", ""):
      settings["help"] = f"{settings['help']}; default {default}" if settings.get("help") else f"default {default}"
    return super().add_argument(*flags, **settings)


class Made(Exception):
  """The parser that a command made, for what asks for it."""


def parser_of(command: str) -> Parser:
  """Returns the parser of a command."""
  try:
    importlib.import_module(f"lmjax.commands.{command}").main([PARSER])
  except Made as made:
    return made.args[0]
  raise AssertionError(f"{command} has no parser")


def new_parser(command: str, description: str) -> Parser:
  """Returns the parser of a command; the description is the docstring of its module."""
  formatter = functools.partial(Help, max_help_position=32)
  return Parser(prog=f"lmjax {command}", description=description, formatter_class=formatter, epilog=EVERY)


def parse_overrides(parser: argparse.ArgumentParser, arguments: list[str]) -> tuple[argparse.Namespace, dict[str, str]]:
  """Returns a command's own options, and the `--config.key=value` among its arguments as {key: value}.

  Raises:
    UserError: an option that the command does not have.
  """
  parser.epilog = f"{EVERY}\n{OF_CONFIGS}"
  overrides, others, waiting = {}, [], list(arguments)
  while waiting:
    argument = waiting.pop(0)
    if argument.startswith("--config."):
      key, given, value = argument[len("--config.") :].partition("=")
      if not given and not waiting:
        raise UserError(f"--config.{key} needs a value: --config.{key}=VALUE")
      overrides[key] = value if given else waiting.pop(0)
    else:
      others.append(argument)
  return parse(parser, others), overrides


def parse(parser: argparse.ArgumentParser, arguments: list[str]) -> argparse.Namespace:
  """Returns a command's options; what argparse would print in many lines is a UserError."""

  if arguments == [PARSER]:
    raise Made(parser)
  command = parser.prog.removeprefix("lmjax ")  # every error already opens with the program's name

  def fail(message: str):
    raise UserError(f"{command}: {message}; see {parser.prog} --help")

  parser.error = fail
  parser.allow_abbrev = False
  options, unknown = parser.parse_known_intermixed_args(arguments)
  if unknown:
    if not unknown[0].startswith("-"):
      raise UserError(f"{command}: unexpected argument {unknown[0]!r}; see {parser.prog} --help")
    known = [o for action in parser._actions for o in action.option_strings if o.startswith("--")]
    raise UserError(f"{command}: no option {unknown[0]!r}{did_you_mean(unknown[0].partition('=')[0], known)}")
  return options


def refuse(parser: argparse.ArgumentParser, options: argparse.Namespace, beside: Rules, needs: Rules = NOTHING) -> None:
  """Raises UserError where an option was given that has no effect.

  Args:
    beside: the options that have none where another is given, {"beams": "stop temperature"}.
    needs: those that have one only where another is given.
  """
  command = parser.prog.removeprefix("lmjax ")
  for without, rules in ((False, beside), (True, needs)):
    for other, names in rules.items():
      for name in names.split() if bool(getattr(options, other)) != without else ():
        if getattr(options, name) != parser.get_default(name):
          raise UserError(f"{command}: --{name} has no effect {'without' if without else 'with'} --{other}")
