"""Commands and snippets of README and the site run, in their order; the site builds without a warning."""

import os
import re
import shlex
import subprocess
import sys

import pytest

from lmjax import config
from lmjax.__main__ import COMMANDS, main
from lmjax.utils import renames
from tests.conftest import ROOT

PAGES = [ROOT / "docs" / page for page in re.findall(r"\S+\.md", (ROOT / "mkdocs.yml").read_text())]
TOUR = ROOT / "docs" / "tour.md"  # its commands take hours
FILES = [ROOT / "README.md", *sorted((ROOT / "configs").glob("*.py")), *sorted((ROOT / "launch").glob("*.sh")), *PAGES]
SMALL = ["--config.steps=2", *(f"--config.model.{key}={value}" for key, value in config.TINY.items())]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_commands_load(path):
  text = path.read_text().replace("\\\n", " ")
  commands = re.findall(r"lmjax train --config (\S+)([^\n#]*)", text)
  assert commands or path.suffix in (".sh", ".md")
  for reference, rest in commands:
    # Or a file that a page writes, or a run that it trains.
    if "..." in reference or "=runs/" in reference or not reference.strip("'").startswith("configs/"):
      continue
    overrides = dict(re.findall(r"--config\.([\w.]+)=(\S+)", rest))
    assert config.load(reference.replace("'", ""), overrides)["steps"] > 0


def blocks(path, language):
  """Returns the code blocks of a language in a page."""
  return re.findall(rf"```{language}\n(.*?)```", path.read_text(), re.DOTALL)


def commands(text):
  """Returns the arguments of the lmjax commands in a block."""
  lines = text.replace("\\\n", " ").splitlines()
  return [shlex.split(line, comments=True)[1:] for line in lines if line.startswith("lmjax ")]


@pytest.fixture
def folder(monkeypatch, tmp_path):
  """A folder with the text files and the small runs that the pages use."""
  (tmp_path / "configs").symlink_to(ROOT / "configs")
  for name in ("my/one", "my/two", "other/three"):
    text = "".join(f"{name} line {i}, once upon a time there was another line\n" for i in range(20_000))
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / f"{name}.txt").write_text(text)
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
  """With tiny models; commands that need OpenAI's tokenizer are left out."""
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
  """Every page in order: commands and snippets, except those that need another library, which the next test runs."""
  ran = set()
  for page in PAGES:
    if page == TOUR:
      continue
    names: dict = {}
    for language, block in re.findall(r"```(bash|python)\n(.*?)```", page.read_text(), re.DOTALL):
      if language == "python":
        exec(compile(block, str(page), "exec"), names)
      for arguments in commands(block) if language == "bash" else ():
        if {"--devices", "--profile"} & set(arguments):  # these need their own process
          lmjax(*arguments, cwd=folder)
        elif not needs_another_library(arguments):
          assert main(arguments) == 0, arguments
        ran.add(arguments[0])
  assert ran == set(COMMANDS)


@pytest.mark.docs
@pytest.mark.slow
def test_the_tour_runs(folder):
  """Every command of the tour, of debug size."""
  small = {"evaluate": ["--limit", "4"], "lottery": ["--rounds", "1", "--seeds", "0:1"], "index": ["--tokens", "24"]}
  ran = set()
  for arguments in commands("\n".join(blocks(TOUR, "bash"))):
    if arguments[0] in ("train", "lottery", "prepare"):
      at = 2  # the config
      arguments[at] += (",debug" if ":" in arguments[at] else ":debug") * ("debug" not in arguments[at])
    more = small.get(arguments[0], [])
    kept = [a for i, a in enumerate(arguments) if not {a, arguments[i - 1]} & {m for m in more if m.startswith("--")}]
    assert main([*kept, *more]) == 0, arguments
    ran.add(arguments[0])
  assert len(ran) > 10


def needs_another_library(arguments):
  """Returns whether a command needs transformers or the TPU compiler."""
  return "--check" in arguments or any(a.startswith("v5") for a in arguments)


@pytest.mark.torch
@pytest.mark.tpu
@pytest.mark.filterwarnings("ignore")
def test_commands_that_need_transformers_or_a_compiler_run(folder, lmjax):
  pytest.importorskip("libtpu", reason="needs the TPU compiler: pip install -e '.[plan]'")
  assert main(["convert", "--input", "runs/gpt2", "--output", "my-gpt2"]) == 0
  needing = [c for page in PAGES for block in blocks(page, "bash") for c in commands(block) if needs_another_library(c)]
  for arguments in needing:
    lmjax(*arguments, cwd=folder) if arguments[0] == "plan" else main(arguments)
  assert {c[0] for c in needing} == {"convert", "plan"}


def test_the_site_is_built(tmp_path):
  """Strictly: a dead link, a page that is not in the menu and a missing module are errors."""
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


def test_the_upgrading_page_lists_every_rename():
  """In a row of a table with both names; a module's row may list a class of it instead."""
  lines = (ROOT / "docs" / "upgrading.md").read_text().splitlines()
  rows = [re.findall(r"[\w.:]+", line) for line in lines if line.startswith("|")]
  pairs = [pair for table in (*renames.KEYS.values(), renames.AXES) for pair in table.items()]
  pairs += [(value, new) for (_, _, value), new in renames.VALUES.items()]
  pairs += [pair for pair in renames.MOVED.items() if ":" in pair[0]]
  for old, new in pairs:
    assert any(old in row and new in row for row in rows), (old, new)
  for old, new in renames.MOVED.items():
    assert any(f"{old}:" in f"{row[0]}:" and new in row[1] for row in rows if len(row) == 2), (old, new)
  for old, new in renames.PARAMETERS:
    assert f"| `{old}` | `{new}` |" in lines, (old, new)


def test_the_readme_lists_every_config():
  listed = set(re.findall(r"`(\w+\.py)`", (ROOT / "README.md").read_text()))
  assert {path.name for path in (ROOT / "configs").glob("*.py")} <= listed


def test_links_of_the_readme_exist():
  for page in (ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "benchmarks").rglob("*.md")):
    for target in re.findall(r"\]\(([^)#:]+)\)", page.read_text()):
      assert (page.parent / target).exists(), f"{page.name}: {target}"
