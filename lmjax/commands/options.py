"""The options of commands: their own, and `--config.key=value`, which every command that has a config takes."""

import argparse

from lmjax.utils.errors import UserError, did_you_mean


def new_parser(command: str, description: str) -> argparse.ArgumentParser:
  """Returns the parser of a command; the description is the docstring of its module."""
  return argparse.ArgumentParser(
    prog=f"lmjax {command}", description=description, formatter_class=argparse.RawTextHelpFormatter
  )


def parse_overrides(parser: argparse.ArgumentParser, arguments: list[str]) -> tuple[argparse.Namespace, dict[str, str]]:
  """Returns a command's own options, and the `--config.key=value` among its arguments as {key: value}.

  Raises:
    UserError: an option that the command does not have.
  """
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

  command = parser.prog.removeprefix("lmjax ")  # every error already opens with the program's name

  def fail(message: str):
    raise UserError(f"{command}: {message}; see {parser.prog} --help")

  parser.error = fail
  parser.allow_abbrev = False
  options, unknown = parser.parse_known_intermixed_args(arguments)
  if unknown:
    known = [o for action in parser._actions for o in action.option_strings if o.startswith("--")]
    raise UserError(f"{command}: no option {unknown[0]!r}{did_you_mean(unknown[0].partition('=')[0], known)}")
  return options
