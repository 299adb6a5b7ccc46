"""What there is and how it is found: configs and their keys, runs, the version, completion, the wheel."""

import json
import os
import pathlib
import re
import shutil
import subprocess
import sys
import zipfile

import pytest

from lmjax import config
from lmjax.__main__ import COMMANDS, main
from lmjax.inference.meanings import keys
from lmjax.inference.runs import find, state_of
from lmjax.parallel.run_lock import only_run
from tests.conftest import ROOT


@pytest.mark.parametrize("name", sorted(path.stem for path in (ROOT / "configs").glob("*.py")))
def test_every_key_of_every_config_has_a_meaning(name):
  rows = [*keys(config.load(f"{name}:debug"))]
  assert len(rows) > 30 and len({key for key, _, _ in rows}) == len(rows)
  assert not [key for key, _, meaning in rows if not meaning]
  assert set(config.variants(name)) >= {"debug"} and config.documentation(name)
  assert json.dumps([value for _, value, _ in rows])


def test_configs_are_listed_and_explained(capsys):
  assert main(["configs"]) == 0
  output = capsys.readouterr().out
  assert all(f"{path.stem} " in output for path in (ROOT / "configs").glob("*.py"))
  assert main(["configs", "gpt2:size=355m", "--keys", "optim."]) == 0
  output = capsys.readouterr().out
  assert "one of 124m 355m 774m 1558m; default 124m" in output
  assert "optim.warmup" in output and "steps of linear warm-up" in output and "model.width" not in output
  assert main(["configs", "gpt22"]) == 2 and "did you mean 'gpt2'?" in capsys.readouterr().err


def test_a_config_is_found_by_name_from_anywhere(tmp_path, monkeypatch):
  here = config.load("configs/gpt2.py:size=355m")
  monkeypatch.chdir(tmp_path)
  for reference in ("gpt2:size=355m", "configs/gpt2.py:size=355m", f"{ROOT}/configs/gpt2.py:size=355m"):
    assert config.load(reference) == here
  (tmp_path / "configs").mkdir()
  (tmp_path / "configs" / "gpt2.py").write_text("def get_config(argument=''):\n  raise ValueError('mine')\n")
  for reference in ("gpt2", "configs/gpt2.py"):  # those here come first
    with pytest.raises(config.UserError, match="mine"):
      config.load(reference)


def run_folder(folder, steps, losses, finished):
  folder.mkdir(parents=True)
  (folder / "config.json").write_text(json.dumps({"steps": steps}))
  lines = [{"step": i + 1, "train_loss": loss, "validation_loss": loss + 1} for i, loss in enumerate(losses)]
  (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
  if finished is not None:
    (folder / "summary.json").write_text(json.dumps({"finished": finished}))


def test_runs_have_a_state(tmp_path, capsys):
  run_folder(tmp_path / "a[1]", 3, [3.0, 1.0, 2.0], "2026-01-01")
  run_folder(tmp_path / "deep" / "b", 9, [3.0], None)
  run_folder(tmp_path / "c", 9, [3.0, 2.0], "")
  (tmp_path / "c" / "config.json").write_text("{corrupt")
  (tmp_path / "other").mkdir()
  runs = find([tmp_path])
  assert [pathlib.Path(name).name for name in runs] == ["a[1]", "c", "b"]
  done = state_of(tmp_path / "a[1]")
  assert (done.state, done.step, done.steps, done.best, done.train_loss) == ("finished", 3, 3, (2, 2.0), 2.0)
  assert state_of(tmp_path / "c").state == "stopped"
  with only_run(tmp_path / "deep" / "b"):
    assert state_of(tmp_path / "deep" / "b").state == "running"
  assert state_of(tmp_path / "deep" / "b").state == "stopped"
  assert main(["runs", str(tmp_path), "--plot", str(tmp_path / "plot.png")]) == 0
  output = capsys.readouterr().out
  assert "2.0000 @ 2" in output and "3/3" in output and (tmp_path / "plot.png").read_bytes()[:4] == b"\x89PNG"
  assert main(["runs", str(tmp_path / "other")]) == 2 and main(["runs", str(tmp_path / "none")]) == 2


def test_the_version_and_the_help(capsys):
  assert main(["--version"]) == 0
  assert re.match(r"lmjax \S+, jax \d\S+, flax \d\S+, Python \d", capsys.readouterr().out)
  assert main([]) == 0
  assert all(command in capsys.readouterr().out for command in ("configs",)) or COMMANDS


@pytest.mark.parametrize("shell", ["bash", "zsh"])
def test_completion_completes(shell, capsys):
  assert main(["completion", shell]) == 0
  script = capsys.readouterr().out
  if not shutil.which(shell):
    pytest.skip(f"{shell} is not installed")
  ask = 'COMP_WORDS=(lmjax {words}); COMP_CWORD={at}; _lmjax; echo "${{COMPREPLY[*]}}"'
  asked = {"gen": "generate", "generate --max": "--max_new_tokens", "train --conf": "--config"}
  for words, wanted in asked.items() if shell == "bash" else ():
    line = ask.format(words=words, at=len(words.split()))
    done = subprocess.run([shell, "-c", f"{script}\n{line}"], capture_output=True, text=True)
    assert wanted in done.stdout.split(), done
  assert subprocess.run([shell, "-n", "-c", script], capture_output=True).returncode == 0


@pytest.mark.long
def test_the_wheel_works_alone(tmp_path):
  """It has the configs, and a config is found by its name without the checkout."""
  source = tmp_path / "source"
  ignored = shutil.ignore_patterns(".*", "build", "*.egg-info", "tests", "docs", "shared")
  shutil.copytree(ROOT, source, ignore=ignored)
  build = [sys.executable, "-m", "pip", "wheel", ".", "--no-deps", "--no-build-isolation", "-q", "-w", str(tmp_path)]
  subprocess.run(build, cwd=source, check=True, capture_output=True)
  (wheel,) = tmp_path.glob("*.whl")
  with zipfile.ZipFile(wheel) as archive:
    archive.extractall(tmp_path / "site")
  shutil.rmtree(source)
  environment = os.environ | {"PYTHONPATH": str(tmp_path / "site")}
  command = [sys.executable, "-m", "lmjax", "configs", "text"]
  done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
  assert done.returncode == 0 and "model.width" in done.stdout, done
