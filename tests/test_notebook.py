"""Saved models in a notebook: metadata alone, values on demand, tables and plots."""

import json
import shutil
import time

import numpy as np
import pytest
from matplotlib.figure import Figure
from orbax.checkpoint import v1 as ocp

from lmjax import notebook
from lmjax.__main__ import main
from lmjax.models.decoder import PRESETS, Config, Decoder
from lmjax.storage.huggingface import families
from lmjax.storage.huggingface.load import axis_sizes
from lmjax.storage.huggingface.weights import hf_shape
from lmjax.utils.errors import UserError


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
  """A run of two checkpoints, and the same as a Hugging Face folder."""
  folder = tmp_path_factory.mktemp("notebook")
  config = ["--config", "configs/gpt2.py:size=124m,debug", "--config.steps=2", "--config.checkpoint.every=1"]
  config += ["--config.model.kv_heads=4"]
  assert main(["train", *config, "--workdir", str(folder / "run")]) == 0
  assert main(["convert", "--input", str(folder / "run"), "--output", str(folder / "hf")]) == 0
  return folder / "run", folder / "hf"


def test_tables_show_names_shapes_and_values(folders, capsys):
  run, hf = map(notebook.load, folders)
  table = run.table(pattern="mlp/up", values=True)
  assert [row[1] for row in table.rows] == ["2x128", "2x64x128"] and table.rows[0][5] == "256"
  kernel = run.weights("mlp/up/kernel")["model/stack/layers/mlp/up/kernel"]
  assert float(table.rows[1][7]) == pytest.approx(np.linalg.norm(kernel), rel=1e-3)
  assert table.rows[1][3] == "layers, width, mlp"
  assert "<td>model/stack/layers/mlp/up/bias</td>" in table._repr_html_() and "2x128" in str(table)
  assert len(run.table(depth=2).rows) < len(run.table().rows)
  assert {row[0] for row in hf.table(depth=2).rows} >= {"transformer/h", "transformer/wte"}
  with pytest.raises(UserError, match="matches no parameter"):
    run.table(pattern="nothing")
  assert "loaded" not in vars(run)  # none of these needed the model
  assert main(["show", str(folders[0]), "--depth", "2"]) == 0
  assert "model/stack" in capsys.readouterr().out
  with pytest.raises(UserError, match="not a saved model"):
    notebook.load(folders[0].parent)


def test_checkpoints_differ_where_they_differ(folders):
  first, second = notebook.load(folders[0], step=1), notebook.load(folders[0], step=2)
  assert all(float(row[1]) == 0 for row in first.diff(first).rows)
  assert any(float(row[1]) > 0 for row in first.diff(second).rows)


def test_plots_are_figures_with_labelled_axes(folders):
  run, hf = map(notebook.load, folders)
  for figure in (run.histograms("mlp"), run.curve(), run.attention("the list", layer=1), hf.attention("a", head=0)):
    assert isinstance(figure, Figure)
    assert any(axis.get_xlabel() for axis in figure.axes) or figure.get_supxlabel()
  assert len(run.attention("the list").axes) == 4 + 1  # one a head, and the scale
  with pytest.raises(UserError, match="not a run folder"):
    hf.curve()


def test_parameters_are_a_tree_where_treescope_is_installed(folders, monkeypatch):
  tree = notebook.load(folders[0]).tree()
  assert "model/stack/layers/mlp/up/bias  float32[2, 128]" in repr(tree).splitlines()
  assert "treescope" in tree._repr_html_()
  monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
  assert tree._repr_html_() is None  # then a notebook shows the text


def test_generation_embeddings_and_the_logit_lens(folders):
  run, hf = map(notebook.load, folders)
  assert run.generate("the", new=4, temperature=0) == hf.generate("the", new=4, temperature=0)
  np.testing.assert_allclose(run.embed(["a", "the list"]), hf.embed(["a", "the list"]), atol=1e-5)
  lens = run.logit_lens("the")
  assert [row[0] for row in lens.rows] == ["layer 1", "layer 2"] and len(lens.columns) == 1 + 4  # start and three bytes
  out = run.loaded.task.forward(run.params, run._batch("the")[0])
  assert lens.rows[-1][-1] == run._token(int(np.asarray(out.logits)[0, -1].argmax()))
  assert len(run.neighbors("t", top=3).rows) == 3
  with pytest.raises(UserError, match="masked"):
    run.fill("a [MASK]")


def test_a_single_checkpoint_is_inspected(folders, tmp_path):
  alone, run = notebook.load(folders[0] / "checkpoints" / "1"), notebook.load(folders[0], step=1)
  assert alone.table(values=True).rows == run.table(values=True).rows
  assert alone.loaded.step == 1 and alone.config == run.config
  shutil.copytree(folders[0] / "checkpoints" / "2", tmp_path / "copied")
  copied = notebook.load(tmp_path / "copied")
  assert copied.table().title == run.table().title and not any(row[3] for row in copied.table().rows)
  assert set(copied.weights("norm")) == set(run.weights("norm"))
  with pytest.raises(UserError, match="without a config"):
    copied.generate("a")


def test_a_table_of_as_many_leaves_as_the_largest_model_has(tmp_path):
  """An Orbax tree of 96 unstacked layers; its arrays are tiny, and none of them is read."""
  layer = {
    part: {"kernel": np.ones((2, 3)), "bias": np.ones(3)} for part in ("query", "key", "value", "out", "up", "down")
  }
  layer |= {part: {"scale": np.ones(2), "bias": np.ones(2)} for part in ("attention_norm", "mlp_norm")}
  params = {
    "model": {f"layer_{i}": layer for i in range(96)} | {"embed": np.ones((7, 2)), "positions": np.ones((5, 2))}
  }
  ocp.save_checkpointables(tmp_path / "7", {"state": {"params": params}})
  began = time.perf_counter()
  run = notebook.load(tmp_path / "7")
  assert len(run.table().rows) == 96 * 16 + 2 and len(run.table(depth=2).rows) == 98
  assert time.perf_counter() - began < 30
  assert run.saved.step == 7 and run.weights("layer_95/up/kernel")["model/layer_95/up/kernel"].sum() == 6


def test_a_table_of_175_billion_appears_in_seconds(tmp_path):
  """A sparse file with a valid header: its 700 GB are neither stored nor read."""
  config = Config(**PRESETS["gpt3-175b"])
  table, sizes = families.FAMILIES["gpt2"].weights(config), axis_sizes(config)
  header, at = {}, 0
  for weight in table:
    wanted = hf_shape(weight.layout, sizes)
    for layer in range(config.depth) if weight.stacked else (0,):
      size = 4 * int(np.prod(wanted, dtype=np.int64))
      entry = {"dtype": "F32", "shape": list(wanted), "data_offsets": [at, at + size]}
      header["transformer." + weight.hf.format(layer)] = entry
      at += size
  text = json.dumps(header).encode()
  with open(tmp_path / "model.safetensors", "wb") as file:
    file.write(len(text).to_bytes(8, "little") + text)
    file.truncate(8 + len(text) + at)
  settings = families.FAMILIES["gpt2"].to_hf(config)
  (tmp_path / "config.json").write_text(json.dumps(settings))
  assert isinstance(families.FAMILIES["gpt2"].module(config), Decoder)
  began = time.perf_counter()
  run = notebook.load(tmp_path)
  table = run.table(depth=2)
  assert "174,604,259,328 values" in table.title and "loaded" not in vars(run)
  assert time.perf_counter() - began < 30  # reading it would take hours


def test_numbers_that_cannot_be_meant_are_errors(folders):
  """In every argument of every method, and before any work: an array would be indexed by the nearest, or be endless."""
  run = notebook.load(folders[0])
  calls = {
    "layer": (run.attention, "a"), "head": (run.attention, "a"), "top": (run.logit_lens, "a"), "depth": (run.table,),
    "bins": (run.histograms,), "step": (notebook.load, folders[0]),
    **dict.fromkeys((*notebook.NUMBERS, "new", "temperature", "seed", "num_samples"), (run.generate, "a")),
  }  # fmt: skip
  for name, (method, *given) in calls.items():
    for value in (
      -1,
      2**40 if name not in ("temperature", "repetition_penalty") else 1e40,
      float("nan"),
      "1",
      True,
      [1],
    ):
      with pytest.raises(UserError, match=name.replace("max_new_tokens", "new")):
        method(*given, **{name: value})
  for method, key in ((run.neighbors, "top"), (run.embed, "layer")):
    with pytest.raises(UserError, match=key):
      method(["a"] if key == "layer" else "a", **{key: 99_999})
  for wrong in (
    lambda: run.embed([]),
    lambda: run.embed("a"),
    lambda: run.generate(5),
    lambda: run.generate("a", stop=5),
  ):
    with pytest.raises(UserError):
      wrong()
  assert run.logit_lens("a", top=np.int64(1)).rows == run.logit_lens("a").rows
  assert run.diff(folders[0]).rows == run.diff(run).rows
