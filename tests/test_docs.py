"""What the documentation tells people to type: every command loads, and README's run, in their order."""

import re
import shlex

import pytest

from lmjax import config
from lmjax.__main__ import COMMANDS, main
from tests.conftest import ROOT

FILES = [ROOT / "README.md", *sorted((ROOT / "configs").glob("*.py")), *sorted((ROOT / "launch").glob("*.sh"))]
SMALL = ["--config.steps=2", *(f"--config.model.{key}={value}" for key, value in config.TINY.items())]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_commands_load(path):
  text = path.read_text().replace("\\\n", " ")
  commands = re.findall(r"lmjax train --config (\S+)([^\n#]*)", text)
  assert commands or path.suffix == ".sh" or "README" in path.name
  for reference, rest in commands:
    if "..." in reference:
      continue
    overrides = dict(re.findall(r"--config\.([\w.]+)=(\S+)", rest))
    assert config.load(reference.replace("'", ""), overrides)["steps"] > 0


def readme_commands():
  """The lines of README's bash blocks that start lmjax."""
  blocks = re.findall(r"```bash\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
  lines = "\n".join(blocks).replace("\\\n", " ").splitlines()
  return [shlex.split(line, comments=True)[1:] for line in lines if line.startswith("lmjax ")]


def test_readme_runs(monkeypatch, tmp_path):
  """In a folder with a text of one's own; models are made tiny, and what wants data of GPT-2's is only loaded."""
  (tmp_path / "configs").symlink_to(ROOT / "configs")
  (tmp_path / "my").mkdir()
  for name in ("one", "two"):
    text = "".join(f"{name} line {i}, once upon a time there was another line\n" for i in range(20_000))
    (tmp_path / "my" / f"{name}.txt").write_text(text)
  (tmp_path / "sentences.txt").write_text("One sentence.\nAnd another one.\n")
  monkeypatch.chdir(tmp_path)
  runs = dict(bert="bert.py:size=mini", m30k="transformer.py:multi30k", gpt2="gpt2.py:size=124m")
  for name, config_ in runs.items():
    small = ["--config.steps=1", *(["--config.model.groups=4"] if name == "gpt2" else [])]
    assert main(["train", "--config", f"configs/{config_},debug", "--workdir", f"runs/{name}", *small]) == 0
  ran = []
  for arguments in readme_commands():
    if any("tokenizer=data/gpt2" in a for a in arguments):
      continue
    small = SMALL if arguments[0] == "train" and not any("debug" in a for a in arguments) else []
    assert main([*arguments, *small]) == 0, arguments
    ran.append(arguments[0])
  assert {"train", "generate", "prepare", "embed", "fill", "evaluate", "convert"} <= set(ran)


def test_every_command_has_help(capsys):
  for command in COMMANDS:
    with pytest.raises(SystemExit) as stopped:
      main([command, "--help"])
    assert stopped.value.code == 0 and f"lmjax {command}" in capsys.readouterr().out
