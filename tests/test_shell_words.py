"""Commands that README, the site, scripts and messages give can be pasted into bash and into zsh as they are.

zsh ends with an error at a pattern that matches no file, and at its prompt it takes `#` for a word and `!` within "..."
for a command of the past. Both shells are asked where they are installed; the rule is tested without them.
"""

import ast
import json
import os
import pathlib
import re
import shlex
import shutil
import subprocess
import sys

import pytest

from tests.conftest import ROOT

PROGRAMS = r"(?:lmjax|pip|python|bash|docker|xpk|mkdocs|pytest|tensorboard)"


def faults(line: str) -> list[str]:
  """Returns what is wrong with a line for bash and for zsh as it is at a prompt, where `#` starts no comment."""
  found, quote, word = [], "", ""
  for i, character in enumerate(line):
    if quote:
      if character == "!" and quote == '"' and not re.match(r"[ =(]|$", line[i + 1 :]):
        found.append('! within "..." recalls a command')
      quote = "" if character == quote and line[i - 1] != "\\" else quote
      word += character
    elif character in "'\"":
      quote, word = character, word + character
    elif character.isspace():
      word = ""
    else:
      if character in "*?[]" and line[i - 1] != "\\":
        found.append(f"{character} without quotes is a pattern")
      if not word and character == "=":
        found.append("a word that starts with = names a program")
      if not word and character == "#":
        return [*found, "# starts no comment in an interactive zsh"]
      if character in "()" and not line[i - 1 : i + 1].startswith(("$(", "\\")):
        found.append(f"{character} without quotes")
      word += character
  return found + (["a quote that is not closed"] if quote else [])


def in_blocks(text: str):
  """Yields the lines of the blocks of shell commands of a page."""
  for block in re.findall(r"```(?:bash|sh|shell|console|zsh)\n(.*?)```", text, re.DOTALL):
    yield from re.sub(r"\\\n\s*", "", block).splitlines()


def in_code(text: str):
  """Yields commands in the running text of a page: `lmjax ...`."""
  outside = re.sub(r"```.*?```", "", text, flags=re.DOTALL)
  yield from (code for code in re.findall(r"`([^`\n]+)`", outside) if re.match(PROGRAMS + r" \S", code))


def in_lines(text: str):
  """Yields the commands on lines of their own, indented or in a comment, without what is written after a gap."""
  for line in re.sub(r"\\\n[#\s]*", "", text).splitlines():
    if match := re.match(rf"[\s#]*({PROGRAMS} .*)$", line):
      yield re.split(r"\s{3,}", match[1])[0]


def in_python(text: str):
  """Yields the commands in docstrings, in lines of their own, and in messages."""
  tree = ast.parse(text)
  documented = (ast.Module, ast.ClassDef, ast.FunctionDef)
  docstrings = [ast.get_docstring(node, clean=False) for node in ast.walk(tree) if isinstance(node, documented)]
  for docstring in filter(None, docstrings):
    yield from in_lines(docstring)
  for node in ast.walk(tree):
    value = node.value if isinstance(node, ast.Constant) else ""
    if isinstance(node, ast.JoinedStr):
      value = "".join(part.value if isinstance(part, ast.Constant) else "X" for part in node.values)
    if isinstance(value, str) and value not in docstrings:
      yield from re.findall(r"(?:lmjax [a-z]+ --?\w|pip install |python -m )[^;:,()\n`]*", value)


def commands(path: pathlib.Path):
  """Yields the commands that a file tells a reader to run."""
  text = path.read_text()
  if path.suffix == ".ipynb":
    text = "\n".join("".join(cell["source"]) for cell in json.loads(text)["cells"] if cell["cell_type"] == "markdown")
  if path.suffix in (".md", ".ipynb"):
    yield from in_blocks(text)
    yield from in_code(text)
  elif path.suffix == ".py":
    yield from in_python(text)
  else:
    yield from in_lines(text)


FILES = [
  *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "SECURITY.md")),
  *sorted(path for folder in ("docs", "launch", "notebooks", "configs", "lmjax")
          for path in (ROOT / folder).rglob("*") if path.suffix in (".md", ".sh", ".ipynb", ".py", ".sbatch")),
]  # fmt: skip


@pytest.mark.parametrize("folder", sorted({path.relative_to(ROOT).parts[0] for path in FILES}))
def test_commands_can_be_pasted(folder):
  found = [(path, command) for path in FILES if path.relative_to(ROOT).parts[0] == folder for command in commands(path)]
  listed = [f"{path.relative_to(ROOT)}: {command}: {fault}" for path, command in found for fault in faults(command)]
  assert not listed, "\n" + "\n".join(listed)
  assert found or folder == "SECURITY.md"


def test_faults_are_seen():
  for bad in (
    "lmjax train --config text:files=my/*.txt", "pip install lmjax[gguf]", "pip install -e .[test]", "ls a?.txt",
    "echo =ls",
    "lmjax fill --workdir a 'it", 'lmjax fill --workdir a "very proud!"', "lmjax runs a  # a comment", "x (a)",
  ):  # fmt: skip
    assert faults(bad), bad
  for good in (
    "lmjax train --config text:files='my/*.txt'", "pip install 'lmjax[gguf]'", "lmjax fill 'proud!'", 'a "$(pwd)" b=c',
    "lmjax train --config.optim.peak_lr=3e-4", 'echo "a [b] *"', "lmjax chat --message \"Hello! I am\"", "a\\*b",
  ):  # fmt: skip
    assert not faults(good), good


PAGES = [
  str(path.relative_to(ROOT))
  for path in FILES
  if path.suffix == ".md" and any(line.startswith("lmjax ") for line in in_blocks(path.read_text()))
]
SHELLS = [shell for shell in ("bash", "zsh") if shutil.which(shell)]  # a machine without zsh has one case fewer


@pytest.mark.parametrize("shell", SHELLS)
@pytest.mark.parametrize("page", PAGES)
def test_a_shell_gives_each_command_the_arguments_that_are_meant(shell, page, tmp_path):
  """In an interactive shell, in an empty folder, where a pattern without quotes matches nothing."""
  lines = [line for line in in_blocks((ROOT / page).read_text()) if line.startswith("lmjax ")]
  (tmp_path / "lmjax").write_text(
    f"#!{sys.executable}\nimport json, sys\nprint('ARGUMENTS', json.dumps(sys.argv[1:]))\n"
  )
  (tmp_path / "lmjax").chmod(0o755)
  (tmp_path / "empty").mkdir()
  options = {"bash": ["--norc", "--noprofile", "-i"], "zsh": ["-f", "-i"]}[shell]
  done = subprocess.run(
    [shell, *options], input="\n".join([*lines, "exit", ""]), cwd=tmp_path / "empty", text=True, capture_output=True,
    env=os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}", "HISTFILE": "", "PS1": "", "PS2": ""}, timeout=60,
  )  # fmt: skip
  shown = re.findall(r"ARGUMENTS (.*)", done.stdout)
  assert [json.loads(text) for text in shown] == [shlex.split(line)[1:] for line in lines], done.stderr
  assert lines
