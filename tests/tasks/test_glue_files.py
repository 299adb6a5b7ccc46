"""The files to submit to GLUE: names, header, indices and labels as its server takes them."""

import csv
import importlib
import types

import numpy as np
import pytest

from lmjax.__main__ import main
from lmjax.commands import predict
from lmjax.inference import glue
from lmjax.utils.errors import UserError

FILES = "CoLA SST-2 MRPC STS-B QQP MNLI-m MNLI-mm QNLI RTE WNLI AX"
NUMBERED = ("cola", "sst2", "mrpc", "qqp", "wnli")


def write_test(task, path, rows):
  """Writes the file of a test set, whose columns are in another order and not alone."""
  test = glue.TESTS[task]
  columns = ["genre", *filter(None, (test.other, test.text)), test.index]
  lines = [columns, *(["x", *(["b"] if test.other else []), 'it "is', str(number)] for number in rows)]
  path.write_text("".join("\t".join(line) + "\r\n" for line in lines))
  return str(path)


@pytest.mark.parametrize("task", glue.TESTS)
def test_every_row_has_its_prediction_in_the_labels_of_glue(task, tmp_path, monkeypatch):
  rng = np.random.default_rng(0)
  rows = rng.permutation(40).tolist()
  own = glue.TESTS[task].labels
  scores = [{"label": str(rng.choice(list(own)))} if own else {"value": float(rng.normal(2, 3))} for _ in rows]
  loaded = types.SimpleNamespace(load=lambda: types.SimpleNamespace(layout=None))
  monkeypatch.setattr(predict.storage, "open", lambda path, step: loaded)
  monkeypatch.setattr(predict, "use_layout", lambda layout: monkeypatch.context())
  monkeypatch.setattr(predict, "make_predictor", lambda loaded, path: lambda texts, batch: scores[: len(texts)])
  command = ["predict", "--workdir", "run", "--glue", task, "--output", str(tmp_path / "out")]
  assert main([*command, "--input", write_test(task, tmp_path / "test.tsv", rows)]) == 0
  (file,) = (tmp_path / "out").iterdir()
  assert file.name.removesuffix(".tsv") in FILES.split()
  header, *lines = csv.reader(file.read_text().splitlines(), delimiter="\t")
  assert header == ["index", "prediction"] and [int(index) for index, _ in lines] == rows
  if task == "stsb":
    assert np.allclose([float(value) for _, value in lines], np.clip([s["value"] for s in scores], 0, 5), atol=1e-3)
  else:
    wanted = {"0", "1"} if task in NUMBERED else set(own)
    assert {label for _, label in lines} == wanted
    assert all(label in (score["label"], own[score["label"]]) for (_, label), score in zip(lines, scores, strict=True))


def test_the_files_are_those_of_glue_and_the_labels_those_of_the_config():
  assert {test.file for test in glue.TESTS.values()} == {f"{name}.tsv" for name in FILES.split()}
  config = importlib.import_module("configs.glue")
  for name, task in config.TASKS.items():
    labels = glue.TESTS[name].labels
    assert all(labels[task.names[number]] == number for number in task.names), name
    assert set(config.LABELS.get(name, ())) in (set(), set(labels)), name


def test_no_row_is_left_out(tmp_path):
  path = write_test("sst2", tmp_path / "test.tsv", [0, 1, 1])
  with pytest.raises(UserError, match="test.tsv has an index twice"):
    glue.read_test(path, "sst2")
  for line, why in (("x\ty\n", "test.tsv:5 has 2 fields"), ("x\ty\tz\n", "test.tsv:5 has the index 'z'")):
    (tmp_path / line.strip()[-1]).mkdir()
    path = write_test("sst2", tmp_path / line.strip()[-1] / "test.tsv", [0, 1, 2])
    with open(path, "a") as file:
      file.write(line)
    with pytest.raises(UserError, match=why):
      glue.read_test(path, "sst2")
  with pytest.raises(UserError, match="rte needs the labels entailment, not_entailment, and the model .* good"):
    list(glue.submission("rte", ["0"], [{"label": "good"}]))
  with pytest.raises(UserError, match="stsb needs a number, and the model has predicted 1"):
    list(glue.submission("stsb", ["0"], [{"label": "1"}]))
