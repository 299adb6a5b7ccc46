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
from lmjax.storage import huggingface
from lmjax.testing import fake_batch, init_params
from tests.families import tiny_task

WIDE = dict(vocabulary=257, width=256, heads=4, head_size=64, mlp=1024, depth=2)


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
  assert report["seconds_per_token"] == pytest.approx(read / 3.35e12)
  more = plan(capsys, folders / "float", "h100:1", "--length", "128", "--batch", "3")
  grown = more["bytes"]["cache"] / report["bytes"]["cache"]
  assert grown == pytest.approx(6, rel=0.01), "three rows of twice as many slots"


@pytest.mark.parametrize("family", ["GPT", "LSTM", "T5"])
def test_families(family):
  task = tiny_task(family)
  params = init_params(task, fake_batch(task))
  saved = SimpleNamespace(task=task, path="x", load=lambda dtype: SimpleNamespace(task=task, params=params, length=16))
  report = decoding_report(saved, parse_topology("cpu:1"), 2, 0)
  stored = sum(np.prod(leaf.shape) * 4 for leaf in jax.tree.leaves(params))
  assert stored / 2 <= report["bytes"]["weights"] <= stored and report["bytes"]["cache"] > 0
  assert report["length"] == 16 and report["seconds_per_token"] is None and report["fits"]


def test_a_table_for_people(capsys, folders):
  assert main(["plan", "--workdir", str(folders / "int8"), "--topology", "h100:1"]) == 0
  printed = capsys.readouterr().out
  assert "weights" in printed and "tokens/s" in printed and "fits" in printed


@pytest.mark.parametrize(
  "topology, more, expected",
  [
    ("h100:2", (), "one device, not 2"),
    ("h100:1", ("--config.batch=4",), "--config.batch has no effect with --workdir"),
    ("v9", (), "unknown topology"),
  ],
)
def test_what_cannot_be_planned(capsys, folders, topology, more, expected):
  assert main(["plan", "--workdir", str(folders / "float"), "--topology", topology, *more]) == 2
  error = capsys.readouterr().err
  assert expected in error and error.count("\n") == 1


def test_an_encoder_generates_nothing():
  saved = SimpleNamespace(task=tiny_task("BERT"), path="bert")
  with pytest.raises(Exception, match="bert is an encoder, which generates nothing"):
    decoding_report(saved, parse_topology("cpu:1"), 1, 0)


@pytest.mark.tpu
@pytest.mark.skipif(not importlib.util.find_spec("libtpu"), reason="needs pip install 'lmjax[plan]'")
def test_integers_are_read_as_integers_on_a_tpu(capsys, folders):
  reports = [plan(capsys, folders / kind, "v5e:1x1", "--length", "64") for kind in ("float", "int8", "int4")]
  assert all(report["method"] == "compiled" for report in reports)
  full, eight, four = (report["bytes"]["weights"] for report in reports)
  assert four < eight < full
  assert reports[1]["accessed"] < reports[0]["accessed"]
