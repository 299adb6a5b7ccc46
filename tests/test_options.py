"""The options of all commands: numbers in range, defaults in the help, options that would have no effect."""

import argparse
import importlib
import re

import pytest

from lmjax.__main__ import COMMANDS, main
from lmjax.commands import options
from lmjax.commands.values import number
from lmjax.utils.errors import UserError


def parser_of(command: str) -> options.Parser:
  """Returns the parser that a command makes."""

  class Made(Exception):
    pass

  def stop(parser, arguments):
    raise Made(parser)

  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(options.Parser, "parse_known_intermixed_args", stop)
    with pytest.raises(Made) as made:
      importlib.import_module(f"lmjax.commands.{command}").main([])
  return made.value.args[0]


@pytest.fixture(scope="module")
def parsers():
  return {command: parser_of(command) for command in COMMANDS}


def test_every_number_is_finite_and_in_range(parsers):
  """No option has a plain int or float as its type, which take nan, inf and whatever overflows later."""
  count = 0
  for command, parser in parsers.items():
    for action in parser._actions:
      assert action.type not in (int, float), f"{command} {action.option_strings}"
      if getattr(action.type, "__qualname__", "").startswith("number."):
        count += 1
        for text in ("nan", "inf", "-inf", "1e999", "-1", "1e1000", "9" * 400, "x", "", "1_0_", "0x10"):
          with pytest.raises(argparse.ArgumentTypeError):
            action.type(text)
        if action.default is not None:
          assert action.type(str(action.default)) == action.default
  assert count > 30


@pytest.mark.parametrize(("kind", "least", "most"), [(int, 0, 7), (int, 1, None), (float, 0, 1), (float, 0.5, None)])
def test_a_number_is_between_its_bounds(kind, least, most):
  read = number(kind, least, most)
  assert read(str(kind(least + 0.5))) >= least and read("1") == 1
  for text in (str(least - 1), *([] if most is None else [str(most + 1)])):
    with pytest.raises(argparse.ArgumentTypeError, match="at least"):
      read(text)


def test_the_help_has_every_default_and_the_options_of_all_commands(parsers):
  for command, parser in parsers.items():
    text = parser.format_help()
    for action in parser._actions:
      plain = not isinstance(action.default, bool) and action.default not in (None, "", [], argparse.SUPPRESS)
      assert not plain or "default" in (action.help or ""), f"{command} {action.option_strings}"
    assert all(option in text for option in ("--devices", "--debug_nans", "--traceback")), command


@pytest.mark.parametrize("command", ["train", "evaluate", "plan", "prepare", "seeds"])
def test_the_help_of_commands_with_a_config_says_how_to_change_it(command, capsys):
  with pytest.raises(SystemExit):
    main([command, "--help"])
  assert "--config.KEY=VALUE" in capsys.readouterr().out


@pytest.mark.parametrize(
  "arguments",
  [
    ["generate", "--beams", "2", "--stop", "x"],
    ["generate", "--beams", "2", "--temperature", "2"],
    ["generate", "--beams", "2", "--top_k", "3"],
    ["generate", "--length_penalty", "1"],
    ["generate", "--temperature", "0", "--top_p", "0.5"],
    ["generate", "--stop", ""],
    ["generate", "--output", "/nowhere/at/all.jsonl"],
    ["embed", "--output", "/nowhere/at/all.npz", "--input", "x"],
    ["report", "runs", "--output", "/nowhere/at/all.html"],
    ["prepare", "--config", "configs/text.py", "--key", "x", "--output", "y"],
    ["prepare", "--files", "x", "--tokenizer", "y", "--size", "300", "--output", "z"],
    ["prepare", "--files", "x", "--rows", "3", "--output", "y"],
    ["prepare", "--inspect", "x", "--output", "y"],
    ["show", "x", "--verify", "--values"],
    ["tokenizer", "encode", "--path", "x", "--size", "300"],
    ["plan", "--workdir", "x", "--topology", "v5e:1x1", "--fit"],
    ["plan", "--config", "configs/gpt2.py", "--topology", "v5e:1x1", "--batch", "8"],
  ],
)
def test_what_would_have_no_effect_is_refused_before_anything_is_read(arguments, capsys, tmp_path, monkeypatch):
  if arguments[0] == "generate":
    arguments = [*arguments, "--prompt", "hi"]
  if arguments[0] in ("generate", "embed"):
    arguments += ["--workdir", str(tmp_path / "none")]
  assert main(arguments) == 2
  error = capsys.readouterr().err
  assert any(words in error for words in ("no effect", "is empty", "does not exist\n")) and "none does not" not in error


def test_a_home_folder_is_expanded_in_all_options_but_texts(parsers, monkeypatch, tmp_path):
  monkeypatch.setenv("HOME", str(tmp_path))
  assert parsers["generate"].parse_args(["--workdir=~/x", "--prompt=~/y"]).workdir == str(tmp_path / "x")
  assert parsers["generate"].parse_args(["--workdir=~/x", "--prompt=~/y"]).prompt == ["~/y"]
  paths = {"workdir", "output", "input", "path", "folders", "files", "config", "prompts_file", "tokenizer"}
  for command, parser in parsers.items():
    for action in parser._actions:
      if action.dest in paths and not action.choices:
        assert action.type("~/x") == str(tmp_path / "x"), f"{command} {action.dest}"


def test_refuse_names_the_option():
  parser = options.new_parser("x", "")
  parser.add_argument("--a", type=int, default=3)
  parser.add_argument("--b", action="store_true")
  for arguments, bad in ((["--a", "4", "--b"], True), (["--a", "3", "--b"], False), (["--a", "4"], False)):
    given = options.parse(parser, arguments)
    if bad:
      with pytest.raises(UserError, match="--a has no effect with --b"):
        options.refuse(parser, given, {"b": "a"})
    else:
      options.refuse(parser, given, {"b": "a"})


@pytest.mark.parametrize("command", ["generate", "train", "show", "convert", "embed"])
def test_a_path_that_is_empty_is_an_error(command, capsys):
  """As of a shell's variable that is not set, which would be the current directory."""
  option = {"show": [""], "convert": ["--input", ""]}.get(command, ["--workdir", ""])
  assert main([command, *option]) == 2
  assert "is empty" in capsys.readouterr().err
  assert main([command, "--workdir" if command not in ("show", "convert") else "--step", "1", "2", "3"]) == 2


@pytest.mark.parametrize("columns", [80, 120])
def test_prose_of_help_fits_the_terminal_and_examples_are_whole(columns, parsers, monkeypatch):
  monkeypatch.setenv("COLUMNS", str(columns))
  for command, parser in parsers.items():
    lines = parser.format_help().splitlines()
    copied = set(re.findall(r"^(?:    |lmjax |echo ).*$", parser.description, re.MULTILINE))  # examples
    wide = [line for line in lines if len(line) > columns and line not in copied and "{" not in line]
    assert not wide, command
    examples = [e for e in map(str.strip, parser.description.splitlines()) if e.startswith(f"lmjax {command} --")]
    assert not set(examples) - set(map(str.strip, lines)), command
