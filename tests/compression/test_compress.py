"""lmjax compress: the copy opens as the model does, is smaller, and nothing is written after an error."""

import functools
import json
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lmjax import notebook, storage
from lmjax.__main__ import main
from lmjax.compression.awq import AWQ
from lmjax.compression.quantize import QTensor, Quantize
from lmjax.inference.before_after import computed, latencies, rows_of
from lmjax.inference.compress import compress
from lmjax.layers.leaves import dense, is_leaf
from lmjax.parallel.mesh import MeshShape
from lmjax.parallel.sharding import Layout, LogicallyPartitioned, is_partitioned
from lmjax.state import named_parameters
from lmjax.storage import huggingface, safetensors
from lmjax.storage.compressed import WEIGHTS, CompressedFolder, describe, tensors_of
from lmjax.tasks.encode import Encode
from lmjax.testing import fake_batch, init_params
from lmjax.utils import pytree
from tests.families import tiny_task

UNMEASURED = ["--measure", ""]
DEBUG = ["--config", "configs/quickstart.py:debug", "--config.steps=1"]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
  folder = tmp_path_factory.mktemp("compress") / "run"
  assert main(["train", *DEBUG, "--workdir", str(folder)]) == 0
  return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  """A Hugging Face folder of a tiny decoder."""
  task = tiny_task("GPT")
  path = tmp_path_factory.mktemp("model") / "gpt"
  huggingface.save(path, task.model, init_params(task, fake_batch(task)))
  return path


def size(folder):
  return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


@pytest.mark.long
def test_a_run_is_compressed_and_opened_by_every_command(run, tmp_path, capsys):
  small = tmp_path / "small"
  arguments = ["compress", "--workdir", str(run), "--output", str(small), "--quantize", "int8"]
  assert main([*arguments, "--report", str(tmp_path / "report.json")]) == 0
  printed = capsys.readouterr().out
  assert "of float32" in printed and "kernel" in printed
  report = json.loads((tmp_path / "report.json").read_text())
  assert "milliseconds, 32 x 32 tokens" in printed and report["latency"].keys() == {"1", "32"}
  assert all(len(pair) == 2 and min(pair) > 0 for pair in report["latency"].values())
  for path, place in ((run, 0), (small, 1)):
    assert main(["evaluate", "--workdir", str(path), "--output", str(tmp_path / "metrics.json")]) == 0
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert {name: pair[place] for name, pair in report["evaluation"].items()} == pytest.approx(
      {name: value for name, value in metrics.items() if name != "step"}
    )
  assert all(0 < error < 0.02 for error in report["errors"].values()) and report["bytes_after"] < size(small)
  assert report["bytes_after"] < 0.32 * report["bytes_before"]
  saved = storage.open(small)
  assert isinstance(saved, CompressedFolder) and saved.quantized
  record = saved.config["compression"]
  assert record["methods"][0]["dtype"] == "int8" and record["source"] == str(run)
  assert main(["generate", "--workdir", str(small), "--prompt", "The", "--max_new_tokens", "4"]) == 0
  assert (
    main(["generate", "--workdir", str(small), "--prompt", "The", "--max_new_tokens", "4", "--dtype", "bfloat16"]) == 0
  )
  assert main(["show", str(small), "--values"]) == 0
  assert main(["show", str(small), "--verify"]) == 0
  opened = notebook.load(small)
  assert "values" in repr(opened) and opened.neighbors("the", top=2).rows
  arrays = {name: np.asarray(array) for name, array in saved.parameters().items()}
  for name, array in storage.open(run).parameters().items():
    before, after = np.asarray(array), arrays[name]
    np.testing.assert_allclose(after, before, atol=np.abs(before).max() / 127 * 0.51 + 1e-8, err_msg=name)


@pytest.mark.long
def test_methods_are_combined_and_compressed_again(run, tmp_path):
  """A pruned copy can be quantized, and its zeros stay; a quantized one cannot."""
  sparse, both = tmp_path / "sparse", tmp_path / "both"
  pruned = ["--output", str(sparse), "--prune", "magnitude", "--sparsity", "0.7"]
  assert main(["compress", "--workdir", str(run), *pruned, *UNMEASURED]) == 0
  assert size(sparse) < 0.75 * sum(leaf.bytes for leaf in storage.open(run).leaves.values())
  quantized = ["--output", str(both), "--quantize", "int4", "--group", "16"]
  assert main(["compress", "--workdir", str(sparse), *quantized, *UNMEASURED]) == 0
  names = [name for name in storage.open(both).parameters() if name.endswith("kernel") and name.startswith("model/")]
  for path in (sparse, both):
    params = storage.open(path).parameters()
    for name in names:
      assert np.mean(np.asarray(params[name]) == 0) >= 0.69, name
  history = json.loads((both / "config.json").read_text())["compression"]
  assert history["before"]["methods"][0]["sparsity"] == 0.7 and history["before"]["source"] == str(run)
  assert main(["generate", "--workdir", str(both), "--prompt", "The", "--max_new_tokens", "4"]) == 0
  assert main(["compress", "--workdir", str(both), "--output", str(tmp_path / "again"), "--quantize", "int8"]) == 2
  assert not (tmp_path / "again").exists()


@pytest.mark.long
def test_a_run_starts_from_a_compressed_model(run, tmp_path):
  small = tmp_path / "small"
  compress(storage.open(run), small, [Quantize()])
  options = [f"--config.start.path={small}", "--config.optim.peak_lr=0.0", "--config.optim.warmup=0"]
  assert main(["train", *DEBUG, *options, "--workdir", str(tmp_path / "tuned")]) == 0
  tuned, start = storage.open(tmp_path / "tuned").parameters(), storage.open(small).parameters()
  for name, array in start.items():
    np.testing.assert_allclose(np.asarray(tuned[name]), np.asarray(array), atol=1e-6, err_msg=name)


@pytest.mark.parametrize(
  "family", [*(pytest.param(name, marks=pytest.mark.slow) for name in ("Llama", "BERT")),
             pytest.param("T5", marks=pytest.mark.long)],
)  # fmt: skip
def test_a_hugging_face_folder_is_compressed(family, tmp_path):
  """The task, its heads and the files of the folder are kept; the copy is converted back."""
  task = tiny_task(family)
  huggingface.save(tmp_path / "model", task.model, init_params(task, fake_batch(task)))
  (tmp_path / "model" / "README.md").write_text("notes")
  saved = storage.open(tmp_path / "model")
  compress(saved, tmp_path / "small", [Quantize("int4", 16, False)])
  small = storage.open(tmp_path / "small")
  assert type(small.task) is type(saved.task) and describe(small.task) == describe(saved.task)
  assert small.task.model.config == saved.task.model.config
  assert (tmp_path / "small" / "source" / "README.md").read_text() == "notes"
  assert sum(leaf.dtype == "int4" for leaf in small.leaves.values()) > 3
  assert main(["convert", "--input", str(tmp_path / "small"), "--output", str(tmp_path / "back")]) == 0
  back = storage.open(tmp_path / "back").parameters()
  for name, array in small.parameters().items():
    np.testing.assert_array_equal(np.asarray(back[name]), np.asarray(array), err_msg=name)


def test_a_copy_is_opened_with_its_leaf_types(folder, tmp_path):
  before = {name: np.asarray(array) for name, array in storage.open(folder).parameters().items()}
  report = compress(storage.open(folder), tmp_path / "small", [Quantize("int4", 16)], {"note": 1})
  saved = storage.open(tmp_path / "small")
  assert saved.quantized and saved.config["compression"]["note"] == 1
  assert saved.config["compression"]["methods"][0]["group"] == 16
  leaves = pytree.named_leaves(
    saved.leaf_params(Layout.build(MeshShape().build(jax.devices()[:1]), "ddp")), is_leaf=is_leaf
  )
  arrays, changed = saved.parameters(), 0
  for name, leaf in leaves.items():
    np.testing.assert_array_equal(np.asarray(dense(leaf, jnp.float32)), np.asarray(arrays[name]), err_msg=name)
    changed += isinstance(leaf, QTensor)
    error = np.linalg.norm(before[name] - np.asarray(arrays[name])) / max(np.linalg.norm(before[name]), 1e-30)
    np.testing.assert_allclose(report.errors.get(name, 0.0), error, rtol=1e-3, atol=1e-7)
  assert changed == len(report.errors) > 5
  assert report.bytes_after == saved.files()[WEIGHTS].stat().length < report.bytes_before / 3.5


FAST = ["GPT", *(pytest.param(family, marks=pytest.mark.long) for family in ("T5", "LSTM")),
        *(pytest.param(family, marks=pytest.mark.slow) for family in ("BERT", "ELMo"))]  # fmt: skip


@pytest.mark.parametrize("family", FAST)
@pytest.mark.parametrize(
  "settings", [Quantize(), Quantize("int4", 8, False), Quantize("float8_e4m3fn"), AWQ("int4", 8)]
)
def test_what_is_stored_is_what_was_made(family, settings, tmp_path):
  """Bit for bit, for every type of value."""
  task = tiny_task(family)
  named = pytree.named_leaves(named_parameters(task, 4, 16), is_leaf=is_partitioned)
  params = pytree.named_leaves(init_params(task, fake_batch(task)))
  boxes = {name: box.replace(value=params[name]) for name, box in named.items()}
  made = settings.apply(task, boxes, fake_batch(task))
  made["model/odd"] = jnp.where(jnp.arange(35).reshape(5, 7) % 3 == 0, 1.5, 0.0)  # a bit for each, and a byte cut off
  arrays = {name: array for path, value in made.items() for name, array in tensors_of(path, value).items()}
  shapes = {name: (array.dtype, array.shape) for name, array in arrays.items()}
  safetensors.write(tmp_path / WEIGHTS, shapes, arrays.values())
  saved = CompressedFolder(tmp_path)
  saved.__dict__["_boxes"] = named | {"model/odd": LogicallyPartitioned(made["model/odd"], (None, None))}
  for name, value in made.items():
    again = saved.parameter(name)
    assert type(again) is type(value) or not isinstance(value, QTensor)
    jax.tree.map(np.testing.assert_array_equal, again, jax.tree.map(np.asarray, value))
  assert set(saved.leaves) == set(arrays)
  assert sum(leaf.bytes for leaf in saved.leaves.values()) == sum(array.nbytes for array in arrays.values())


@pytest.mark.parametrize(
  "options, message",
  [
    ([], "give --quantize or --prune"),
    (["--prune", "magnitude", "--sparsity", "1.0"], "at least 0 and below 1"),
    (["--prune", "magnitude", "--sparsity", "-0.1"], "a number of at least 0, not -0.1"),
    (["--prune", "magnitude", "--sparsity", "nan"], "a finite number"),
    (["--prune", "magnitude", "--structure", "heads"], "the structure is"),
    (["--prune", "magnitude", "--structure", "4:4"], "the structure is"),
    (["--prune", "magnitude", "--structure", "2:4", "--sparsity", "0.3"], "a sparsity of its own"),
    (["--prune", "magnitude", "--structure", "3:7"], "does not divide"),
    (["--prune", "wanda"], "need --calibration"),
    (["--prune", "wanda", "--structure", "global", "--calibration", "x"], "its structure is output"),
    (["--quantize", "int8", "--calibration", "x"], "is for --prune wanda"),
    (["--quantize", "int8", "--targets", "nothing", "--tables", "none"], "matches no kernel"),
    (["--quantize", "int8", "--targets", "("], "not a regular expression"),
    (["--quantize", "int8", "--group", "-1"], "at least 0, not -1"),
    (["--quantize", "float8_e5m2", "--asymmetric"], "symmetric around zero"),
    (["--sparsity", "0.5", "--quantize", "int8"], "need --prune"),
    (["--score", "taylor", "--quantize", "int8"], "--score needs --remove"),
    (["--remove", "heads=1"], "the fraction is at least 0 and below 1"),
    (["--remove", "heads=0.99"], "leaves none"),
    (["--remove", "channels=0.5"], "what is removed is heads, mlp, layers"),
    (["--remove", "heads"], "give WHAT=FRACTION"),
    (["--remove", "heads=0.5", "--remove", "heads=0.2"], "is given twice"),
    (["--quantize", "int8", "--targets", "nothing"], "matches no kernel"),
    (["--quantize", "int8", "--tokens", "64"], "--tokens 64 has no effect"),
    (["--quantize", "int8", "--seed", "7"], "--seed 7 has no effect"),
    (["--remove", "mlp=0.5", "--score", "taylor"], "need a run, whose data they are of"),
    (["--group", "3", "--prune", "random"], "--group needs --quantize"),
    (["--gptq", "--prune", "random"], "--gptq needs --quantize"),
    (["--gptq", "--quantize", "int4"], "need --calibration"),
    (["--gptq", "--quantize", "float8_e5m2", "--calibration", "x"], "rounds to integers"),
    (["--quantize", "int8", "--measure", "speed"], "--measure is latency and evaluation"),
    (["--quantize", "int8", "--measure", "latency", "--config", "x.py"], "--config is for --measure evaluation"),
  ],
)
def test_errors_are_one_line_and_write_nothing(folder, tmp_path, capsys, options, message):
  assert main(["compress", "--workdir", str(folder), "--output", str(tmp_path / "out"), *options]) == 2
  error = capsys.readouterr().err.strip()
  assert message in error and "\n" not in error
  assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("family", ["GPT", "BERT", "T5", "LSTM", "ELMo", "vectors"])
def test_rows_that_are_timed_are_whole(family):
  """A task of every family computes something of them, and none is padding."""
  task = Encode(tiny_task("BERT").model) if family == "vectors" else tiny_task(family)
  params = jax.eval_shape(lambda: init_params(task, fake_batch(task)))
  batch = rows_of(task, 3, 8)
  vectors, scores = jax.eval_shape(functools.partial(computed, task), params, batch)
  assert vectors.shape[:2] == (3, 8) and (scores is None) == (family == "vectors")
  assert all(jnp.all(batch[key] == 1) for key in batch if key.endswith("segments"))


def test_int4_models_are_timed(folder, tmp_path):
  compress(storage.open(folder), tmp_path / "small", [Quantize("int4", 16)])
  layout = Layout.build(MeshShape().build(jax.devices()[:1]), "ddp")
  saved = storage.open(tmp_path / "small")
  loaded = SimpleNamespace(task=saved.task, params=saved.leaf_params(layout), layout=layout)
  assert all(seconds > 0 for seconds in latencies([loaded, loaded], 1, 8))


def test_nothing_is_overwritten(folder, tmp_path, capsys):
  (tmp_path / "out").mkdir()
  assert main(["compress", "--workdir", str(folder), "--output", str(tmp_path / "out"), "--quantize", "int8"]) == 2
  assert "is there already" in capsys.readouterr().err
  assert main(["compress", "--workdir", str(folder), "--output", str(folder), "--quantize", "int8"]) == 2
