"""Files of a folder name no file outside of it, no link leads out, and no file beside the command line is imported."""

import json
import os
import subprocess
import sys

import h5py
import jax.numpy as jnp
import pytest
from etils import epath

from lmjax import config, experiment, storage
from lmjax.__main__ import main
from lmjax.data.sources import records
from lmjax.data.sources.shards import Prepared, check_sums, read_index
from lmjax.data.sources.text import TextFiles
from lmjax.data.sources.write_shards import Preparation
from lmjax.data.tokenizers import registry
from lmjax.storage import bilm, huggingface
from lmjax.storage.huggingface.sentence import read_sentence
from lmjax.testing import init_params, tiny_decoder
from lmjax.utils import trust
from lmjax.utils.errors import UserError
from lmjax.utils.files import inside
from tests.conftest import ROOT

OUTSIDE = (
  "/etc/passwd",
  "../x",
  "a/../../x",
  "..",
  "a/..",
  "~/x",
  "gs://bucket/x",
  "C:\\x",
  "a\\..\\x",
  "C:x",
  "x\0",
  5,
  None,
)


@pytest.fixture
def folder(tmp_path):
  """A tiny model as a Hugging Face folder, with its tokenizer."""
  model = tiny_decoder(vocabulary=257)
  params = init_params(model, {"inputs": jnp.zeros((1, 4), jnp.int32)})["params"]
  huggingface.save(tmp_path / "hf", model, {"model": params, "heads": {}}, registry.Bytes())
  return tmp_path / "hf"


@pytest.fixture
def prepared(tmp_path):
  (tmp_path / "text.txt").write_text("some words\n" * 50)
  list(Preparation(TextFiles(str(tmp_path / "text.txt"), document="line"), registry.Bytes()).run(tmp_path / "prepared"))
  return tmp_path / "prepared"


@pytest.mark.parametrize("name", OUTSIDE)
def test_names_in_files_stay_inside_the_folder(name, folder, prepared):
  """Of every format that names files."""
  refused = pytest.raises(UserError, match="names the file .*, which is not a path inside of it")
  with refused:
    inside(folder, name)
  (folder / "modules.json").write_text(json.dumps([{"type": "x.Pooling", "path": name}]))
  with refused:
    read_sentence(folder)
  os.rename(folder / "model.safetensors", folder / "part.safetensors")
  for index in ("model.safetensors.index.json", "flax_model.msgpack.index.json"):
    (folder / index).write_text(json.dumps({"weight_map": {"x": name}}))
    with refused:
      huggingface.load(folder)
    (folder / index).unlink()
    (folder / "part.safetensors").unlink(missing_ok=True)  # or it is no folder of Flax files
  index = read_index(prepared)
  index["splits"]["train"][0]["file"] = name
  (prepared / "index.json").write_text(json.dumps(index))
  with refused:
    check_sums(prepared)
  with refused:
    len(Prepared(str(prepared)))
  assert main(["prepare", "--inspect", str(prepared)]) == 2


@pytest.mark.parametrize("name", ["x", "a/b", "a..b", ".hidden", "a/./b", "", "model-00001-of-00002.safetensors"])
def test_other_names_are_files_of_the_folder(name, tmp_path):
  assert str(inside(tmp_path, name).resolve()).startswith(str(tmp_path))


def link(path, target):
  path.unlink(missing_ok=True)
  path.symlink_to(target)


@pytest.mark.parametrize(
  "name",
  ["hf/tokenizer.json", "hf/config.json", "hf/other", "prepared/index.json", "run/config.json", "run/a/b/c", "run"],
)
def test_links_lead_to_files_inside(name, folder, prepared, tmp_path):
  """In every format, for the files that it reads and those that it does not."""
  (tmp_path / "run" / "a" / "b").mkdir(parents=True)
  registry.Bytes().save(tmp_path / "run" / "tokenizer")
  (tmp_path / "run" / "config.json").write_text("{}")
  root, secret = tmp_path / name.partition("/")[0], tmp_path / "secret.json"
  path = root / "tokenizer" / "bytes.json" if name == "run" else tmp_path / name
  opening = {"prepared": read_index, "hf": storage.open, "run": registry.load if name == "run" else storage.open}[
    root.name
  ]
  secret.write_bytes(path.read_bytes() if path.exists() else b"{}")
  for target in (secret, os.path.relpath(secret, path.parent), tmp_path / "missing", root, "sub", "/dev/zero"):
    (path.parent / "sub").mkdir(exist_ok=True)
    link(path, target)
    with pytest.raises(trust.UntrustedError, match="is a link to .*, which is not a file inside the folder.*--trust"):
      opening(root)
  link(path, secret)
  with trust.trusting(trust.ALL):
    opening(root)
  secret.rename(path.parent / "kept")
  link(path, "kept")
  opening(root)


def test_links_of_a_run_are_not_written_through(tmp_path, capsys):
  """What wandb links is its own; other links would be followed when a run is resumed."""
  run, outside = tmp_path / "run", tmp_path / "outside"
  outside.write_text("kept")
  (run / "wandb" / "run-1").mkdir(parents=True)
  link(run / "wandb" / "latest-run", "run-1")
  link(run / "wandb" / "run-1" / "debug-core.log", outside)
  settings = config.load("configs/quickstart.py:debug")
  experiment.check_or_save_config(settings, registry.Bytes(), epath.Path(run))
  assert experiment.load_config(run) == settings
  with pytest.raises(trust.UntrustedError):
    inside(run, "wandb/run-1/debug-core.log")
  for name in ("metrics.jsonl", "lengths.png", ".config.json.part"):
    link(run / name, outside)
    for call in (experiment.load_config, lambda run: experiment.check_or_save_config(settings, registry.Bytes(), run)):
      with pytest.raises(trust.UntrustedError, match=name):
        call(epath.Path(run))
    assert main(["prepare", "--inspect", str(run)]) == 2
    (run / name).unlink()
  assert outside.read_text() == "kept"


def test_links_of_a_hugging_face_cache_lead_to_its_blobs(folder, tmp_path):
  cache = tmp_path / "hub" / "models--owner--name"
  snapshot, blobs = cache / "snapshots" / "0123abc", cache / "blobs"
  for path in (snapshot, blobs):
    path.mkdir(parents=True)
  for number, file in enumerate(folder.iterdir()):
    os.rename(file, blobs / str(number))
    (snapshot / file.name).symlink_to(f"../../blobs/{number}")
  assert storage.open(snapshot).tokenizer.size == 257
  (tmp_path / "by_link").symlink_to(snapshot)
  assert storage.open(tmp_path / "by_link").config["model_type"] == "gpt2"
  for target in ("../../refs", "../../../models--other--name/blobs/0"):
    (snapshot / target).parent.mkdir(parents=True, exist_ok=True)
    (snapshot / target).write_text("{}")
    link(snapshot / "tokenizer_config.json", target)
    with pytest.raises(trust.UntrustedError, match="which is not a file inside"):
      storage.open(snapshot)
  (blobs / "0").unlink()
  (blobs / "0").symlink_to("/etc/passwd")  # a blob is a file itself
  (snapshot / "tokenizer_config.json").unlink()
  with pytest.raises(trust.UntrustedError):
    storage.open(snapshot)


def test_datasets_name_no_code(tmp_path):
  """TFDS imports the class of a feature by its name."""
  for name, at in (("tensorflow_datasets.core.features.text_feature.Text", ""), ("os.path", "x/y/1.0.0")):
    for key in ("pythonClassName", "python_class_name", "type"):
      (tmp_path / at).mkdir(parents=True, exist_ok=True)
      (tmp_path / at / "features.json").write_text(json.dumps({"featuresDict": {"features": {"a": {key: name}}}}))
      if name.startswith("tensorflow"):
        records.check_features(tmp_path)
        continue
      with pytest.raises(trust.UntrustedError, match="names 'os.path', which is not TFDS's own"):
        records.check_features(tmp_path)
      with trust.trusting(trust.ALL):
        records.check_features(tmp_path)
  for content in ('{"a":', "[1]", '{"type": "os.path", "a":', "[" * 10**5, '{"a": "\\ud800"}'):
    (tmp_path / "features.json").write_text(content)
    with pytest.raises(UserError, match="features.json is"):
      records.check_features(tmp_path)
  (tmp_path / "features.json").write_text('{"type": "os.path", "type": "tensorflow_datasets.core"}')
  with pytest.raises(trust.UntrustedError):
    records.check_features(tmp_path)


def test_arrays_of_an_hdf5_file_are_its_own(tmp_path):
  (tmp_path / "secret").write_bytes(bytes(64))
  with h5py.File(tmp_path / "other.hdf5", "w") as other:
    other["x"] = [1.0]
  with h5py.File(tmp_path / "weights.hdf5", "w") as file:
    file["own"] = [1.0]
    file["linked"] = h5py.ExternalLink("other.hdf5", "/x")
    file["group"] = h5py.ExternalLink("other.hdf5", "/")
    file.create_dataset("external", (8,), "f8", external=[(str(tmp_path / "secret"), 0, 64)])
    layout = h5py.VirtualLayout((1,), "f8")
    layout[:] = h5py.VirtualSource(str(tmp_path / "other.hdf5"), "x", (1,))
    file.create_virtual_dataset("virtual", layout)
  with h5py.File(tmp_path / "weights.hdf5") as file:
    assert bilm._read(file, "own") == [1.0]
    for name in ("linked", "group/x", "external", "virtual", "group"):
      with pytest.raises(ValueError, match="lies in another file|is not an array"):
        bilm._read(file, name)


def test_the_current_directory_comes_last(tmp_path):
  """With `python -m` and in processes of workers; a module of the user in it is found."""
  for name in ("json", "jax", "glob", "re", "numpy", "etils", "pickle", "struct", "shlex", "traceback", "difflib"):
    (tmp_path / f"{name}.py").write_text(f"open('ran-{name}', 'w')\nraise SystemExit('the wrong module')\n")
  (tmp_path / "mine.py").write_text("def keep(text):\n  return 'q' not in text\n")
  (tmp_path / "text.txt").write_text("some words\nquit\n" * 50)
  environment = {key: value for key, value in os.environ.items() if key != "PYTHONSAFEPATH"}
  environment |= {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}
  arguments = "prepare --files text.txt --document line --keep mine:keep --algorithm bytes --output out --workers 1"
  for command in (["-m", "lmjax"], ["-P", "-c", "import sys; from lmjax.__main__ import main; sys.exit(main())"]):
    done = subprocess.run(
      [sys.executable, *command, *arguments.split()], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert not list(tmp_path.glob("ran-*"))
    arguments = arguments.replace("--output out --workers 1", "--output again --workers 0")
