"""What README and the site tell people to type runs, in its order; the site builds without a warning."""

import os
import re
import shlex
import subprocess
import sys

import pytest

from lmjax import config
from lmjax.__main__ import COMMANDS, main
from tests.conftest import ROOT

PAGES = [ROOT / "docs" / page for page in re.findall(r"\S+\.md", (ROOT / "mkdocs.yml").read_text())]
FILES = [ROOT / "README.md", *sorted((ROOT / "configs").glob("*.py")), *sorted((ROOT / "launch").glob("*.sh")), *PAGES]
SMALL = ["--config.steps=2", *(f"--config.model.{key}={value}" for key, value in config.TINY.items())]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_commands_load(path):
  text = path.read_text().replace("\\\n", " ")
  commands = re.findall(r"lmjax train --config (\S+)([^\n#]*)", text)
  assert commands or path.suffix in (".sh", ".md")
  for reference, rest in commands:
    if "..." in reference:
      continue
    overrides = dict(re.findall(r"--config\.([\w.]+)=(\S+)", rest))
    assert config.load(reference.replace("'", ""), overrides)["steps"] > 0


def blocks(path, language):
  """Returns the blocks of a language in a page."""
  return re.findall(rf"```{language}\n(.*?)```", path.read_text(), re.DOTALL)


def commands(text):
  """Returns the lines of a block that start lmjax, as arguments."""
  lines = text.replace("\\\n", " ").splitlines()
  return [shlex.split(line, comments=True)[1:] for line in lines if line.startswith("lmjax ")]


@pytest.fixture
def folder(monkeypatch, tmp_path):
  """A folder with a text of one's own and the small runs that the pages speak of."""
  (tmp_path / "configs").symlink_to(ROOT / "configs")
  (tmp_path / "my").mkdir()
  for name in ("one", "two"):
    text = "".join(f"{name} line {i}, once upon a time there was another line\n" for i in range(20_000))
    (tmp_path / "my" / f"{name}.txt").write_text(text)
  (tmp_path / "sentences.txt").write_text("One sentence.\nAnd another one.\n")
  (tmp_path / "pairs.txt").write_text("One sentence.\tAnd another one.\n")
  (tmp_path / "prompts.txt").write_text("One\nAnother\n")
  monkeypatch.chdir(tmp_path)
  monkeypatch.setattr(sys, "path", [*sys.path, str(tmp_path)])
  runs = dict(bert="bert.py:size=mini", m30k="transformer.py:multi30k", gpt2="gpt2.py:size=124m")
  for name, config_ in runs.items():
    small = ["--config.steps=1", *(["--config.model.kv_heads=4"] if name == "gpt2" else [])]
    assert main(["train", "--config", f"configs/{config_},debug", "--workdir", f"runs/{name}", *small]) == 0
  return tmp_path


@pytest.mark.docs
def test_readme_runs(folder):
  """Models are made tiny, and what wants data of GPT-2's is only loaded."""
  ran = []
  for arguments in commands("\n".join(blocks(ROOT / "README.md", "bash"))):
    if any("tokenizer=data/gpt2" in a for a in arguments):
      continue
    small = SMALL if arguments[0] == "train" and not any("debug" in a for a in arguments) else []
    assert main([*arguments, *small]) == 0, arguments
    ran.append(arguments[0])
  assert {"train", "generate", "prepare", "embed", "fill", "evaluate", "convert"} <= set(ran)


@pytest.mark.docs
def test_the_site_runs(folder, lmjax):
  """Every page in its order: commands and snippets, but for what wants another library, which the next test runs."""
  ran = set()
  for page in PAGES:
    names: dict = {}
    for language, block in re.findall(r"```(bash|python)\n(.*?)```", page.read_text(), re.DOTALL):
      if language == "python":
        exec(compile(block, str(page), "exec"), names)
      for arguments in commands(block) if language == "bash" else ():
        if {"--devices", "--profile"} & set(arguments):  # which are for a process of their own
          lmjax(*arguments, cwd=folder)
        elif not elsewhere(arguments):
          assert main(arguments) == 0, arguments
        ran.add(arguments[0])
  assert ran == set(COMMANDS)


def elsewhere(arguments):
  """Returns whether a command wants transformers or the TPU compiler."""
  return "--check" in arguments or any(a.startswith("v5") for a in arguments)


@pytest.mark.torch
@pytest.mark.tpu
@pytest.mark.filterwarnings("ignore")
def test_what_wants_transformers_or_a_compiler_runs(folder, lmjax):
  pytest.importorskip("libtpu", reason="needs the TPU compiler: pip install -e '.[plan]'")
  assert main(["convert", "--input", "runs/gpt2", "--output", "my-gpt2"]) == 0
  found = [c for page in PAGES for block in blocks(page, "bash") for c in commands(block) if elsewhere(c)]
  for arguments in found:
    lmjax(*arguments, cwd=folder) if arguments[0] == "plan" else main(arguments)
  assert {c[0] for c in found} == {"convert", "plan"}


def test_the_site_is_built(tmp_path):
  """Strictly: a dead link, a page left out or a module that is not there is an error."""
  environment = os.environ | {"NO_MKDOCS_2_WARNING": "1"}
  command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path)]
  built = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120)
  assert built.returncode == 0, built.stderr
  assert "make_step" in (tmp_path / "api" / "training" / "index.html").read_text()
  assert {p.relative_to(ROOT / "docs").as_posix() for p in (ROOT / "docs").rglob("*.md")} == {
    page.relative_to(ROOT / "docs").as_posix() for page in PAGES
  }
  assert {page.stem for page in PAGES if page.parent.name == "commands"} == set(COMMANDS)


def test_every_command_has_help(capsys):
  for command in COMMANDS:
    with pytest.raises(SystemExit) as stopped:
      main([command, "--help"])
    assert stopped.value.code == 0 and f"lmjax {command}" in capsys.readouterr().out
