"""Data in whole runs: prepared folders, mixtures and their versions, buckets, a user's sources."""

import json
import re

import pytest

from lmjax import config
from lmjax.__main__ import main
from lmjax.data.sources.python_docs import PythonDocs

BASE = ("train", "--config", "configs/quickstart.py:debug", "--config.steps=6", "--config.checkpoint.every=3")
DOCS = {"kind": "lmjax.data.sources.python_docs:PythonDocs", "split": ":5%"}


def upper_case(split: str, times: int = 1) -> list[str]:
  """A user's source is any function that returns documents by index."""
  return [PythonDocs(split)[i].upper() * times for i in range(10)]


def lines(run):
  return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def test_prepare_then_train(tmp_path, capsys):
  (tmp_path / "a.txt").write_text("".join(f"line {i} of the corpus\n" * 20 for i in range(400)))
  common = ("--algorithm", "bytes", "--document", "line", "--workers", "0", "--validation", "0.1")
  assert main(["prepare", "--files", str(tmp_path / "a.txt"), *common, "--output", str(tmp_path / "data")]) == 0
  assert f"configs/text.py:prepared={tmp_path / 'data'}" in capsys.readouterr().out
  small = [f"--config.model.{k}={v}" for k, v in config.TINY.items()]
  arguments = ("train", "--config", f"configs/text.py:prepared={tmp_path / 'data'}", "--config.steps=3", *small)
  arguments += ("--config.data.length=32", "--config.data.packing=first_fit", "--config.log.every=1")
  assert main([*arguments, "--workdir", str(tmp_path / "run")]) == 0
  assert all(0 < line["padding"] < 0.5 for line in lines(tmp_path / "run") if "padding" in line)


@pytest.mark.long
def test_a_source_added_to_a_mixture_is_a_new_version(tmp_path, capsys):
  mixture = {"kind": "lmjax.data.streams:Mixture", "parts": {"a": {"source": DOCS, "weight": 2}}}
  both = mixture | {"parts": mixture["parts"] | {"b": {"source": DOCS | {"split": "5%:10%"}}}}
  first = (*BASE, "--workdir", str(tmp_path), "--config.log.every=1")
  assert main([*first, f"--config.data.source={mixture}"]) == 0
  assert main([*first, f"--config.data.source={both}", "--config.steps=9"]) == 2
  assert "--config.data.version=1" in capsys.readouterr().err
  grown = [*first, f"--config.data.source={both}", "--config.data.version=1"]
  assert main([*grown, "--config.steps=9"]) == 0
  assert re.search(r"data version 1 \w+ at step 6", capsys.readouterr().out)
  assert main([*grown, "--config.steps=12"]) == 0
  assert "data version" not in capsys.readouterr().out
  assert [line["step"] for line in lines(tmp_path) if "train_loss" in line] == list(range(1, 13))


def test_packing_may_change_with_the_version(tmp_path, capsys):
  """Positions of another size belong to the older version, and are not used."""
  assert main([*BASE, "--workdir", str(tmp_path)]) == 0
  more = ("--config.steps=9", "--config.data.version=1", "--config.data.packing=buckets", "--config.data.buckets=8,32")
  assert main([*BASE, "--workdir", str(tmp_path), *more]) == 0
  assert re.search(r"data version 1 \w+ at step 6", capsys.readouterr().out)


def test_a_function_is_a_source(tmp_path, capsys):
  own = {"kind": "tests.data.test_runs:upper_case", "split": ":5%"}
  assert main([*BASE, "--workdir", str(tmp_path / "run"), f"--config.data.source={own}"]) == 0
  wrong = own | {"time": 2}
  assert main([*BASE, "--workdir", str(tmp_path / "other"), f"--config.data.source={wrong}"]) == 2
  assert "config.data.source.time: no such key; did you mean 'times'?" in capsys.readouterr().err


@pytest.mark.parametrize("changes", ["packing=heap", "buckets=8", "packing=buckets"])
def test_invalid_packings_are_refused(tmp_path, capsys, changes):
  assert main([*BASE, "--workdir", str(tmp_path), f"--config.data.{changes}"]) == 2
  assert capsys.readouterr().err.count("\n") == 1
