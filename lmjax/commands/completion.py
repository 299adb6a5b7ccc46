"""Completion of commands and options in a shell.

lmjax completion bash >> ~/.bashrc
lmjax completion zsh >> ~/.zshrc
"""

import importlib

from lmjax.commands.options import new_parser, parse, parser_of

SCRIPT = """_lmjax() {{
  local word="${{COMP_WORDS[COMP_CWORD]}}" words=""
  if [ "$COMP_CWORD" -eq 1 ]; then
    words="{commands} --version --help"
  else
    case "${{COMP_WORDS[1]}}" in
{cases}
    esac
  fi
  if [[ "$word" == --* || "$COMP_CWORD" -eq 1 ]]; then COMPREPLY=($(compgen -W "$words" -- "$word")); fi
}}
complete -o default -F _lmjax lmjax"""


def main(arguments: list[str]) -> int:
  """Runs `lmjax completion`."""
  parser = new_parser("completion", __doc__)
  parser.add_argument("shell", choices=("bash", "zsh"))
  options = parse(parser, arguments)
  commands = importlib.import_module("lmjax.__main__").COMMANDS
  cases = []
  for command in commands:
    flags = [flag for action in parser_of(command)._actions for flag in action.option_strings if flag.startswith("--")]
    words = " ".join([*flags, "--devices", "--debug_nans", "--traceback", "--trust"])
    cases.append(f'      {command}) words="{words}" ;;')
  if options.shell == "zsh":
    print("autoload -Uz bashcompinit && bashcompinit")
  print(SCRIPT.format(commands=" ".join(commands), cases="\n".join(cases)))
  return 0
