"""Plans of decoding with a saved model: weights are counted as they are stored, and an absent TPU reads fewer bytes."""

import importlib.util
import json
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from lmjax.__main__ import main
from lmjax.data.tokenizers.base import Bytes
from lmjax.planning.aot import parse_topology
from lmjax.planning.decoding import decoding_report
from lmjax.state import named_parameters
from lmjax.storage import huggingface
from lmjax.tasks.classification import Classification
from lmjax.testing import fake_batch, init_params
from lmjax.utils.errors import UserError
from tests.families import tiny_task

WIDE = dict(vocabulary=257, length=128, width=256, heads=4, head_size=64, mlp=1024, depth=2)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
  """A tiny decoder, and its copies with integers."""
  task, root = tiny_task("Llama", **WIDE), tmp_path_factory.mktemp("models")
  huggingface.save(root / "float", task.model, init_params(task, fake_batch(task)), Bytes())
  for kind, more in (("int8", ()), ("int4", ("--group", "64"))):
    command = ["compress", "--workdir", str(root / "float"), "--output", str(root / kind), "--quantize", kind]
    assert main([*command, "--tables", "none", "--measure", "", *more]) == 0
  return root


def plan(capsys, folder, topology, *more, code=0):
  capsys.readouterr()
  assert main(["plan", "--workdir", str(folder), "--topology", topology, "--json", *more]) == code
  return json.loads(capsys.readouterr().out)


def test_weights_are_counted_as_they_are_stored(capsys, folders):
  sizes = {kind: plan(capsys, folders / kind, "h100:1", "--length", "64") for kind in ("float", "int8", "int4")}
  kernels = 2 * 256 * (256 * 4 + 3 * 1024)  # of two layers
  scales = {"int8": 2 * 4 * (4 * 256 + 2 * 1024 + 256), "int4": 4 * kernels // 64}
  weights = {kind: report["bytes"]["weights"] for kind, report in sizes.items()}
  assert weights["float"] - weights["int8"] == 2 * kernels - kernels - scales["int8"]
  assert weights["float"] - weights["int4"] == 2 * kernels - kernels // 2 - scales["int4"]
  report = sizes["float"]
  assert report["method"] == "counted" and report["fits"] and report["total"] == sum(report["bytes"].values())
  read = report["bytes"]["weights"] + report["bytes"]["cache"]
  assert report["seconds"] == pytest.approx(read / 3.35e12)
  more = plan(capsys, folders / "float", "h100:1", "--length", "128", "--batch", "3")
  grown = more["bytes"]["cache"] / report["bytes"]["cache"]
  assert grown == pytest.approx(6, rel=0.01), "three rows of twice as many slots"


def saved_model(task):
  return SimpleNamespace(task=task, path="x", named=named_parameters(task, 1, 16))


@pytest.mark.parametrize("family", ["GPT", "LSTM", "T5"])
def test_families(family):
  task = tiny_task(family)
  report = decoding_report(saved_model(task), parse_topology("cpu:1"), 2, 0)
  stored = sum(np.prod(leaf.shape) * 4 for leaf in jax.tree.leaves(init_params(task, fake_batch(task))))
  assert stored / 2 <= report["bytes"]["weights"] <= stored and report["bytes"]["cache"] > 0
  assert report["length"] == (None if family == "LSTM" else 16) and report["source"] == (16 if family == "T5" else None)
  assert report["seconds"] is None and report["fits"]


@pytest.mark.parametrize("topology", ["h100:1", "cpu:1"])
def test_a_table_for_people(capsys, folders, topology):
  assert main(["plan", "--workdir", str(folders / "int8"), "--topology", topology]) == 0
  printed = capsys.readouterr().out
  assert "weights" in printed and "cache of 128 tokens" in printed
  assert ("tokens/s" in printed and "fits" in printed) == (topology == "h100:1")


@pytest.mark.parametrize("family", ["BERT", "ELMo"])
def test_what_generates_nothing(family):
  with pytest.raises(UserError, match="does not generate text"):
    decoding_report(saved_model(tiny_task(family)), parse_topology("cpu:1"), 1, 0)


@pytest.mark.parametrize(
  "topology, more, expected",
  [
    ("h100:2", (), "one device, not 2"),
    ("h100:1", ("--config.batch=4",), "--config.batch has no effect with --workdir"),
    ("v9", (), "unknown topology"),
    ("h100:1", ("--length", "129"), "up to 128 tokens, not the 129"),
  ],
)
def test_what_cannot_be_planned(capsys, folders, topology, more, expected):
  assert main(["plan", "--workdir", str(folders / "float"), "--topology", topology, *more]) == 2
  error = capsys.readouterr().err
  assert expected in error and error.count("\n") == 1


def test_a_head_in_place_of_words_generates_nothing():
  task = Classification(tiny_task("GPT").model, labels=("a", "b"))
  with pytest.raises(UserError, match="does not generate text"):
    decoding_report(saved_model(task), parse_topology("cpu:1"), 1, 0)


@pytest.mark.tpu
@pytest.mark.skipif(not importlib.util.find_spec("libtpu"), reason="needs pip install 'lmjax[plan]'")
def test_integers_are_read_as_integers_on_a_tpu(capsys, folders):
  reports = [plan(capsys, folders / kind, "v5e:1x1", "--length", "64") for kind in ("float", "int8", "int4")]
  assert all(report["method"] == "compiled" for report in reports)
  full, eight, four = (report["bytes"]["weights"] for report in reports)
  assert four < eight < full
  assert reports[1]["accessed"] < reports[0]["accessed"]


@pytest.mark.tpu
@pytest.mark.skipif(not importlib.util.find_spec("libtpu"), reason="needs pip install 'lmjax[plan]'")
def test_what_does_not_fit_on_a_tpu():
  report = decoding_report(saved_model(tiny_task("GPT")), parse_topology("v5e:1x1"), 10_000_000, 16)
  assert not report["fits"] and min(report["bytes"].values()) >= 0 and report["accessed"] is None
