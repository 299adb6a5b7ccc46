"""Parameters from saved models: starting points of training, frozen models, and sources.json."""

import dataclasses
import json
import re
import shutil
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util

from lmjax import storage
from lmjax.__main__ import main
from lmjax.compression.base import Identity
from lmjax.experiment import Start
from lmjax.layers.leaves import cast
from lmjax.optim import Optimizer
from lmjax.parallel.mesh import MeshShape
from lmjax.parallel.sharding import Layout, LogicallyPartitioned
from lmjax.state import make_init, named_parameters
from lmjax.storage import huggingface
from lmjax.storage.chosen_layers import ChosenLayers
from lmjax.storage.new_layers import keep_bottom
from lmjax.storage.sources import check_sources, record_sources
from lmjax.storage.start import load, load_frozen
from lmjax.tasks.base import Frozen
from lmjax.tasks.causal_lm import CausalLM
from lmjax.testing import fake_batch, init_params, tiny_decoder
from lmjax.utils import pytree
from lmjax.utils.errors import UserError
from tests.families import tiny_task

LAYOUT = Layout.build(MeshShape().build(jax.devices()[:1]), "fsdp_tp")
DEBUG = ["--config", "configs/gpt2.py:size=124m,debug", "--config.model.kv_heads=4", "--config.evals.every=0"]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
  """A run folder with checkpoints at steps 1 and 2."""
  folder = tmp_path_factory.mktemp("start") / "run"
  options = [*DEBUG, "--config.steps=2", "--config.checkpoint.every=1"]
  assert main(["train", *options, "--workdir", str(folder)]) == 0
  return folder


@pytest.fixture(scope="module")
def hf(tmp_path_factory):
  """A Hugging Face folder of a tiny GPT-2, and its parameters by path name."""
  folder, model = tmp_path_factory.mktemp("start") / "hf", tiny_decoder()
  params = {"model": init_params(model, {"inputs": jnp.zeros((1, 4), jnp.int32)})["params"], "heads": {}}
  huggingface.save(folder, model, params)
  return folder, pytree.named_leaves(params)


def named(**changes):
  return named_parameters(CausalLM(tiny_decoder(**changes)), 1, 8)


def test_all_parameters_of_a_run_folder_are_loaded(run):
  saved = storage.open(run)
  arrays, report = load(Start(str(run)), saved.named, LAYOUT)
  assert set(arrays) == set(report.loaded) == set(saved.leaves) and not report.initialised and not report.unused
  for name, array in arrays.items():
    np.testing.assert_array_equal(array, saved.read(name), err_msg=name)
  assert report.step == 2 and str(report) == f"start: loaded {len(arrays)} parameters from {run} at step 2"


def test_training_prints_the_report_in_words(run, tmp_path, capsys):
  options = [*DEBUG, "--config.steps=1", f"--config.start.path={run}", "--workdir", str(tmp_path / "run")]
  assert main(["train", *options]) == 0
  out = " ".join(capsys.readouterr().out.split())
  assert re.search(rf"start: loaded \d+ parameters from {re.escape(str(run))} at step 2", out) and "Report(" not in out


def test_the_step_is_the_one_asked_for(run):
  named = storage.open(run).named
  arrays, report = load(Start(str(run), step=1), named, LAYOUT)
  assert report.step == 1
  first, latest = storage.open(run, 1), storage.open(run)
  assert any(np.any(first.read(name) != latest.read(name)) for name in arrays)
  assert all(np.array_equal(array, first.read(name)) for name, array in arrays.items())
  arrays, _ = load(Start(str(run / "checkpoints" / "1")), named, LAYOUT)
  assert all(np.array_equal(array, first.read(name)) for name, array in arrays.items())
  with pytest.raises(UserError, match="no step 0; it has 1, 2"):
    load(Start(str(run), step=0), named, LAYOUT)


def test_a_run_starts_from_the_moving_average_of_its_source(tmp_path):
  options = [*DEBUG, "--config.steps=2", "--config.optim.ema=0.5", "--config.optim.warmup=0"]
  assert main(["train", *options, "--workdir", str(tmp_path / "run")]) == 0
  saved = storage.open(tmp_path / "run")
  arrays, _ = load(Start(str(tmp_path / "run")), saved.named, LAYOUT)
  averaged = pytree.named_leaves(saved.load().params)
  for name, array in arrays.items():
    np.testing.assert_array_equal(array, averaged[name], err_msg=name)
    np.testing.assert_array_equal(saved.parameters()[name], averaged[name], err_msg=name)
  assert any(np.any(array != saved.read(name)) for name, array in arrays.items())


def test_a_hugging_face_folder_is_loaded_onto_shardings(hf):
  folder, params = hf
  arrays, report = load(Start(str(folder)), named(), LAYOUT)
  assert report.step is None and set(arrays) == set(params)
  for name, array in arrays.items():
    rows = 50 if name == "model/embed/table" else None  # padding is not stored
    np.testing.assert_array_equal(array[:rows], params[name][:rows], err_msg=name)
  sharding = LAYOUT.sharding("vocabulary", "width", shape=arrays["model/embed/table"].shape)
  assert arrays["model/embed/table"].sharding == sharding


def test_a_vocabulary_may_be_padded_further(hf):
  folder, params = hf
  name = "model/embed/table"
  boxes = {name: LogicallyPartitioned(jax.ShapeDtypeStruct((256, 32), jnp.float32), ("vocabulary", "width"), 50)}
  table = load(Start(str(folder)), boxes, LAYOUT)[0][name]
  assert table.shape == (256, 32) and not np.any(table[50:])
  np.testing.assert_array_equal(table[:50], params[name][:50])


@pytest.mark.parametrize(
  "changes,shapes", [(dict(mlp=48), "3x64x32 .* and 3x48x32"), (dict(vocabulary=60), "50x32 .* and 60x32")]
)
def test_another_shape_is_refused(hf, changes, shapes):
  with pytest.raises(UserError, match=f"has shape {shapes} in this model") as error:
    load(Start(str(hf[0])), named(**changes), LAYOUT)
  assert "\n" not in str(error.value)
  kept = Start(str(hf[0]), parts="attention", new=".*")
  assert all("attention" in name for name in load(kept, named(**changes), LAYOUT)[0])


def test_missing_parameters_must_match_new(hf):
  folder = str(hf[0])
  untied = named(tie_embeddings=False)
  with pytest.raises(UserError, match="does not have model/unembed/table"):
    load(Start(folder), untied, LAYOUT)
  arrays, report = load(Start(folder, new="unembed"), untied, LAYOUT)
  assert report.initialised == ("model/unembed/table",) and "model/unembed/table" not in arrays
  assert "newly initialised: model/unembed/table" in str(report)
  with pytest.raises(UserError, match="parts='norm' excludes model/embed/table"):
    load(Start(folder, parts="norm"), named(), LAYOUT)
  with pytest.raises(UserError, match="no parameter of"):
    load(Start(folder, parts="nothing", new=".*"), named(), LAYOUT)
  with pytest.raises(ValueError, match="not a regular expression"):
    Start(folder, parts="(")


def test_unused_parameters_are_reported(hf):
  boxes = named()
  boxes["model"].pop("positions")
  arrays, report = load(Start(str(hf[0])), boxes, LAYOUT)
  assert report.unused == ("model/positions/table",) and len(str(report).splitlines()) == 2
  assert load(Start(), boxes, LAYOUT)[0] == {}
  with pytest.raises(UserError, match="does not exist"):
    load(Start(str(hf[0] / "nowhere")), boxes, LAYOUT)
  with pytest.raises(UserError, match="single checkpoint"):
    load(Start(str(hf[0]), step=3), boxes, LAYOUT)


@pytest.mark.parametrize("source", ["run", "hf"])
def test_a_frozen_model_is_cast_but_for_its_norms(run, hf, source):
  path = str(run if source == "run" else hf[0])
  frozen, abstract = load_frozen(Frozen(path), LAYOUT), load_frozen(Frozen(path), LAYOUT, abstract=True)
  saved = traverse_util.unflatten_dict(storage.open(path).parameters(), sep="/")
  expected = cast(jax.tree.map(jnp.asarray, saved), jnp.dtype(jnp.bfloat16))
  leaves = pytree.named_leaves(frozen.params)
  assert set(leaves) == set(pytree.named_leaves(expected))
  for name, leaf in leaves.items():
    np.testing.assert_array_equal(leaf, pytree.named_leaves(expected)[name], err_msg=name)
    assert leaf.dtype == (jnp.float32 if "norm" in name else jnp.bfloat16), name
  described = jax.tree.map(lambda x: (x.shape, x.dtype, x.sharding), frozen.params)
  assert described == jax.tree.map(lambda x: (x.shape, x.dtype, x.sharding), abstract.params)
  assert frozen.task == abstract.task and frozen.task.model.config.dtype == "bfloat16"
  batch = fake_batch(frozen.task, 2, 8)
  logits = jax.jit(lambda frozen, batch: frozen.task.forward(frozen.params, batch).logits)(frozen, batch)
  assert np.isfinite(logits).all()
  exact = load_frozen(Frozen(path, "float32"), LAYOUT)
  assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(exact.params))


def test_sources_are_recorded_and_pinned(run, hf, tmp_path):
  sources = {"start": Start(str(run), parts="model"), "teacher": Frozen(str(hf[0]))}
  record_sources(tmp_path, sources)
  record = json.loads((tmp_path / "sources.json").read_text())
  assert record["start"]["step"] == 2 and record["teacher"]["step"] is None
  assert "model.safetensors" in record["teacher"]["files"] and len(record["teacher"]["sha256"]) == 64
  checked = check_sources(tmp_path, sources)
  assert checked["start"] == dataclasses.replace(sources["start"], step=2)  # a later checkpoint is not taken
  assert checked["teacher"] == sources["teacher"]
  with pytest.raises(UserError, match="does not list the source 'reward'"):
    check_sources(tmp_path, {"reward": Frozen(str(run))})


def test_a_source_may_move_and_may_not_change(hf, tmp_path):
  old, new = tmp_path / "old", tmp_path / "new"
  shutil.copytree(hf[0], old)
  sources = {"start": Start(str(old))}
  record_sources(tmp_path, sources)
  old.rename(new)
  with pytest.raises(UserError, match=r"'start' .* is missing .*edit `path`.*--config.start.path=NEW") as error:
    check_sources(tmp_path, sources)
  assert "\n" not in str(error.value)
  assert check_sources(tmp_path, {"start": Start(str(new))})["start"].path == str(new)
  record = json.loads((tmp_path / "sources.json").read_text())
  record["start"]["path"] = str(new)
  (tmp_path / "sources.json").write_text(json.dumps(record))
  assert check_sources(tmp_path, sources)["start"].path == str(new)
  with (new / "config.json").open("a") as file:
    file.write("\n")
  with pytest.raises(UserError, match=r"has changed: config.json has"):
    check_sources(tmp_path, sources)


@pytest.mark.parametrize(
  "changes", [{"path": 3}, {"step": "1"}, {"step": 1.5}, {"files": [1]}, {"files": {"a": "1"}}, {"files": {"a": None}}]
)
def test_a_record_of_a_source_has_a_path_a_step_and_sizes(changes, tmp_path):
  record = {"path": str(tmp_path), "step": None, "files": {"a": 1}, "sha256": ""} | changes
  missing = {key: value for key, value in record.items() if key not in changes}
  for value in (record, [record], "x", *([missing] if "step" in missing else [])):
    (tmp_path / "sources.json").write_text(json.dumps({"start": value}))
    with pytest.raises(UserError, match=r"sources.json: start(\.\w+)* (must be|is missing)|sources.json: start\.files"):
      check_sources(tmp_path, {"start": Start("nowhere")})


def test_starting_from_scratch_imports_no_format():
  code = "import sys, lmjax.storage.start, lmjax.storage.sources; print(*sys.modules)"
  modules = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
  assert "lmjax.storage.base" in modules
  assert not {"lmjax.storage.huggingface", "lmjax.storage.bilm", "lmjax.storage.run", "tokenizers"} & set(modules)


def test_layers_at_the_top_are_initialised_anew(hf):
  """Stacked layers keep those at the bottom; numbered ones are left out."""
  folder, params = hf
  arrays, report = load(Start(str(folder), new_layers=2), named(), LAYOUT)
  assert "the top 2 layers" in report.initialised
  init, _ = make_init(CausalLM(tiny_decoder()), Optimizer().build(2), Identity(), LAYOUT, 2, 8, 0)
  state, fresh = (pytree.named_leaves(init(loaded).params) for loaded in (arrays, {}))
  for name, array in state.items():
    if "/layers/" in name:
      np.testing.assert_array_equal(array[:1], params[name][:1], err_msg=name)
      np.testing.assert_array_equal(array[1:], fresh[name][1:], err_msg=name)
    else:
      rows = 50 if name == "model/embed/table" else None  # padding is not stored
      np.testing.assert_array_equal(array[:rows], params[name][:rows], err_msg=name)
  with pytest.raises(UserError, match="new_layers is 4, and the model has 3 layers"):
    load(Start(str(folder), new_layers=4), named(), LAYOUT)
  lstm = {"model/embed/table": jnp.ones(3), "model/layers_0/kernel": jnp.ones(3), "model/layers_1/kernel": jnp.ones(3)}
  assert set(keep_bottom(lstm, 1)) == {"model/embed/table", "model/layers_0/kernel"}


def test_some_layers_of_a_model_are_loaded(hf, tmp_path):
  """In the order that is asked for, of stacked layers and of those with modules of their own."""
  folder, before = hf
  arrays, report = load(Start(str(folder), layers=(2, 0)), named(depth=2), LAYOUT)
  for name, array in arrays.items():
    expected = before[name][np.asarray([2, 0])] if "/layers/" in name else before[name]
    rows = 50 if name.endswith("embed/table") else len(expected)  # the others are padding
    np.testing.assert_array_equal(array[:rows], expected[:rows], err_msg=name)
  assert set(report.loaded) == set(before) and not report.initialised
  for layers, words in (((0, 3), "has 3"), ((-1, 0), "has 3")):
    with pytest.raises(UserError, match=words):
      load(Start(str(folder), layers=layers), named(depth=2), LAYOUT)
  with pytest.raises(UserError, match="has shape 1x4x8"):
    load(Start(str(folder), layers=(0,)), named(depth=2), LAYOUT)


def test_numbered_layers_are_renamed(tmp_path):
  task = tiny_task("ModernBERT")
  huggingface.save(tmp_path / "model", task.model, init_params(task, fake_batch(task)))
  saved = storage.open(tmp_path / "model")
  before, chosen = saved.parameters(), ChosenLayers(saved, (2, 1)).parameters()
  moved = {name: name.replace("layers_0/", "layers_2/") for name in chosen}
  assert any(name != other for name, other in moved.items()) and not any("layers_2/" in name for name in chosen)
  for name, other in moved.items():
    np.testing.assert_array_equal(np.asarray(chosen[name]), np.asarray(before[other]), err_msg=name)
