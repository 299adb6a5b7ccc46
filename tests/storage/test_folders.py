"""Hugging Face folders that are corrupt, inconsistent or unknown: a one-line error, and nothing half-written."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from flax import serialization, traverse_util

from lmjax import storage
from lmjax.__main__ import main
from lmjax.compression.base import Identity
from lmjax.data.tokenizers.registry import train
from lmjax.storage import huggingface, safetensors
from lmjax.storage.huggingface.weights import arrange, hf_shape
from lmjax.storage.safetensors import Tensors
from lmjax.testing import init_params, tiny_decoder
from lmjax.utils import pytree
from lmjax.utils.errors import UserError

TEXT = "the quick brown fox jumps over the lazy dog " * 20


@pytest.fixture
def folder(tmp_path):
  """A tiny GPT-2 with its tokenizer, as transformers would write it."""
  tokenizer = train("bpe", [TEXT], 300)
  model = tiny_decoder(vocabulary=tokenizer.size)
  params = init_params(model, {"inputs": jnp.zeros((1, 4), jnp.int32)})["params"]
  huggingface.save(tmp_path / "gpt2", model, {"model": params, "heads": {}}, tokenizer)
  return tmp_path / "gpt2"


def test_a_model_comes_back_as_it_was(folder, tmp_path):
  loaded = huggingface.load(folder)
  huggingface.save(tmp_path / "again", loaded.model, loaded.params, loaded.tokenizer, loaded.settings)
  assert (folder / "model.safetensors").read_bytes() == (tmp_path / "again" / "model.safetensors").read_bytes()
  again = huggingface.load(tmp_path / "again")
  assert again.model.config == loaded.model.config
  for name, leaf in pytree.named_leaves(again.params).items():
    np.testing.assert_array_equal(leaf, pytree.named_leaves(loaded.params)[name])


def test_commands_take_the_folder_for_a_run(folder, tmp_path, capsys):
  assert main(["generate", "--workdir", str(folder), "--prompt", "the", "--max_new_tokens", "3"]) == 0
  (tmp_path / "in.txt").write_text("the fox\n")
  out = str(tmp_path / "o.npz")
  assert main(["embed", "--workdir", str(folder), "--input", str(tmp_path / "in.txt"), "--output", out]) == 0
  assert np.load(out)["embeddings"].shape == (1, 32)
  capsys.readouterr()
  assert main(["fill", "--workdir", str(folder), "a [MASK]"]) == 2
  assert "has no masked-LM head" in capsys.readouterr().err


def test_a_run_becomes_a_folder_that_a_config_measures(tmp_path, capsys):
  """With the metrics of the run; a config that does not fit is refused."""
  run, out, config = str(tmp_path / "run"), str(tmp_path / "out"), "configs/gpt2.py:size=124m,debug"
  assert main(["train", "--config", config, "--config.steps=1", "--config.model.kv_heads=4", "--workdir", run]) == 0
  assert main(["convert", "--input", run, "--output", out]) == 0
  assert huggingface.load(out).model.config.depth == 2
  metrics = []
  for folder, more in ((run, []), (out, ["--config", config])):
    assert main(["evaluate", "--workdir", folder, *more, "--output", str(tmp_path / "metrics.json")]) == 0
    metrics.append(json.loads((tmp_path / "metrics.json").read_text()))
  assert metrics[0].pop("step") == 1 and metrics[1].pop("step") == 0
  assert metrics[0].keys() == metrics[1].keys()
  for key, value in metrics[0].items():
    assert metrics[1][key] == pytest.approx(value, rel=1e-5)
  capsys.readouterr()
  for folder, more, message in (
    (out, [], "give a config"),
    (out, ["--config", "configs/bert.py:debug"], "is MaskedLM"),
    (run, ["--config", config], "a config of its own"),
  ):
    assert main(["evaluate", "--workdir", folder, *more]) == 2
    assert message in capsys.readouterr().err
  assert main(["convert", "--input", run, "--output", out]) == 2
  assert "is not empty" in capsys.readouterr().err


def test_half_precision_is_read_and_written_back(folder, tmp_path):
  tensors = Tensors(folder)
  shapes = {name: (np.dtype(ml_dtypes.bfloat16), tensors.shape(name)) for name in tensors}
  half = [tensors[name].astype(ml_dtypes.bfloat16) for name in tensors]
  safetensors.write(folder / "half", shapes, half)
  (folder / "half").rename(folder / "model.safetensors")
  settings = json.loads((folder / "config.json").read_text()) | {"dtype": "bfloat16"}
  (folder / "config.json").write_text(json.dumps(settings))
  loaded = huggingface.load(folder)
  assert all(leaf.dtype == np.float32 for leaf in jax.tree.leaves(loaded.params))
  huggingface.save(tmp_path / "back", loaded.model, loaded.params, settings=loaded.settings)
  assert (folder / "model.safetensors").read_bytes() == (tmp_path / "back" / "model.safetensors").read_bytes()


def header(folder, change):
  """Rewrites the header of a folder's file."""
  data = (folder / "model.safetensors").read_bytes()
  size = int.from_bytes(data[:8], "little")
  fields = json.loads(data[8 : 8 + size])
  change(fields)
  text = json.dumps(fields).encode().ljust(size)
  (folder / "model.safetensors").write_bytes(len(text).to_bytes(8, "little") + text + data[8 + size :])


def refused(folder, match):
  with pytest.raises(UserError, match=match) as error:
    huggingface.load(folder)
  assert "\n" not in str(error.value)


def test_corrupt_and_inconsistent_files_are_refused(folder):
  whole = (folder / "model.safetensors").read_bytes()
  for cut in (0, 5, 100, len(whole) // 2, len(whole) - 1):
    (folder / "model.safetensors").write_bytes(whole[:cut])
    refused(folder, "is corrupt")
  (folder / "model.safetensors").write_bytes((2**60).to_bytes(8, "little") + whole[8:])
  refused(folder, "is corrupt")
  (folder / "model.safetensors").write_bytes(whole)
  header(folder, lambda h: h["transformer.wte.weight"].update(data_offsets=[0, 10**9]))
  refused(folder, "lies outside the file")
  (folder / "model.safetensors").write_bytes(whole)
  header(folder, lambda h: h["transformer.wte.weight"].update(shape=[7, 7]))
  refused(folder, r"\[7, 7\] of F32")


def test_tensors_missing_left_over_or_of_another_shape_are_named(folder):
  whole = (folder / "model.safetensors").read_bytes()
  header(folder, lambda h: h.update({"transformer.h.9.odd": h.pop("transformer.h.1.ln_1.bias")}))
  refused(folder, r"the tensor transformer\.h\.1\.ln_1\.bias is missing")
  (folder / "model.safetensors").write_bytes(whole)
  header(folder, lambda h: h.update({"odd.one": {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}}))
  refused(folder, "does not use the tensors odd.one")
  (folder / "model.safetensors").write_bytes(whole)
  settings = json.loads((folder / "config.json").read_text())
  (folder / "config.json").write_text(json.dumps(settings | {"n_positions": 8}))
  refused(folder, r"wpe.weight has shape \[16, 32\], not \[8, 32\]")


def test_pickles_unknown_architectures_and_indices_that_point_elsewhere_are_refused(folder):
  index = folder / "model.safetensors.index.json"
  index.write_text(json.dumps({"weight_map": {"a": "../secret.safetensors"}}))
  refused(folder, "not a path inside of it")
  index.write_text(json.dumps({"weight_map": {"a": "model-1.safetensors"}}))
  refused(folder, "which is missing")
  index.write_text("{")
  refused(folder, "is not JSON")
  index.unlink()
  (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
  refused(folder, "save_pretrained")
  settings = json.loads((folder / "config.json").read_text())
  (folder / "config.json").write_text(json.dumps(settings | {"model_type": "gpt3"}))
  refused(folder, "closest to that of 'gpt2', a decoder")
  (folder / "config.json").write_text(json.dumps(settings | {"activation_function": "swoosh"}))
  refused(folder, "swoosh")


def test_several_files_are_one_folder(folder):
  tensors = Tensors(folder)
  names = list(tensors)
  before = huggingface.load(folder).arrays()
  for part, mine in (("a.safetensors", names[:5]), ("b.safetensors", names[5:])):
    shapes = {name: (tensors.dtype(name), tensors.shape(name)) for name in mine}
    safetensors.write(folder / part, shapes, (tensors[name] for name in mine))
  weight_map = {name: "a.safetensors" if name in names[:5] else "b.safetensors" for name in names}
  (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
  (folder / "model.safetensors").unlink()
  jax.tree.map(np.testing.assert_array_equal, before, huggingface.load(folder).arrays())


def test_a_model_without_an_equivalent_is_refused_and_nothing_is_written(tmp_path):
  model = tiny_decoder(norm="rms")
  with pytest.raises(UserError, match="differs from gpt2, the closest, in norm"):
    huggingface.save(tmp_path / "x", model, {"model": {}, "heads": {}})
  with pytest.raises(UserError, match="no parameter model/embed/table"):
    huggingface.save(tmp_path / "y", tiny_decoder(), {"model": {}, "heads": {}})
  assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("layout", ["D (3 H K) -> 3 D H K", "(H K) D -> D H K", "D (H K) -> H K D", "V D -> V D"])
def test_arrangements_go_both_ways(layout):
  sizes = dict(D=6, H=2, K=3, V=5)
  left = {"D (3 H K)": (6, 18), "(H K) D": (6, 6), "D (H K)": (6, 6), "V D": (5, 6)}[layout.split(" -> ")[0]]
  tensor = np.arange(np.prod(left)).reshape(left)
  assert hf_shape(layout, sizes) == left
  parameter = arrange(tensor, layout, sizes)
  assert np.array_equal(arrange(parameter, layout, sizes, back=True), tensor)
  if layout.startswith("D (3"):
    assert np.array_equal(parameter[1, :, 1, 2], tensor[:, 6 + 3 + 2])  # of the keys, head 1, element 2
  if layout == "(H K) D -> D H K":
    assert np.array_equal(parameter[4, 1], tensor[3:, 4])
  with pytest.raises(ValueError, match="has shape"):
    arrange(tensor[:-1], layout, sizes)


def as_flax(folder, path, shards=1):
  """Writes a folder's model as the Flax classes of transformers did: other names, and every kernel the other way round.

  What Linear keeps as outputs x inputs Flax's Dense keeps as inputs x outputs; GPT-2's Conv1D and its Flax class too
  differ by a transposition.
  """
  path.mkdir()
  (path / "config.json").write_text((folder / "config.json").read_text())
  tensors, tree = Tensors(folder), {}
  for name in tensors:
    *parents, last = name.split(".")
    array = np.array(tensors[name])
    if last == "weight":
      embedding = parents[-1] in ("wte", "wpe")
      last = "embedding" if embedding else "scale" if array.ndim == 1 else "kernel"
      array = array.T.copy() if last == "kernel" else array
    tree[(*parents, last)] = array
  if shards == 1:
    (path / "flax_model.msgpack").write_bytes(serialization.to_bytes(traverse_util.unflatten_dict(tree)))
    return path
  names, weight_map = {"/".join(key): array for key, array in tree.items()}, {}
  for i in range(shards):
    part = dict(list(names.items())[i::shards])
    (path / f"flax_model-{i}.msgpack").write_bytes(serialization.to_bytes(part))
    weight_map |= dict.fromkeys(part, f"flax_model-{i}.msgpack")
  (path / "flax_model.msgpack.index.json").write_text(json.dumps({"weight_map": weight_map}))
  return path


@pytest.mark.parametrize("shards", [1, 3])
def test_the_old_flax_format_is_read(folder, tmp_path, shards):
  loaded = huggingface.load(as_flax(folder, tmp_path / "flax", shards))
  jax.tree.map(np.testing.assert_array_equal, loaded.arrays(), huggingface.load(folder).arrays())
  for file in (tmp_path / "flax").glob("*.msgpack"):
    file.write_bytes(file.read_bytes()[:-9])
  refused(tmp_path / "flax", "is corrupt")


def test_parameters_are_read_slice_by_slice(folder):
  loaded = huggingface.load(folder)
  for name, leaf in pytree.named_leaves(loaded.params).items():
    whole = np.asarray(leaf)
    assert whole.shape == leaf.shape and whole.dtype == leaf.dtype and whole.size == leaf.size, name
    index = tuple(slice(size // 2, size) for size in leaf.shape)
    np.testing.assert_array_equal(leaf[index], whole[index], err_msg=name)
    np.testing.assert_array_equal(leaf[len(whole) - 1], whole[-1], err_msg=name)
    np.testing.assert_array_equal(leaf[-1:], whole[-1:], err_msg=name)
  table = loaded.params["model"]["embed"]["table"]
  assert table.shape[0] == 384 and not np.any(table[loaded.model.config.vocabulary :])  # rows of padding


@dataclasses.dataclass(frozen=True)
class Halved(Identity):
  """A transform of a user: the model uses half of each trained parameter, by a factor in its own state."""

  def init(self, params):
    return params, {"factor": jnp.full((), 0.5)}, {}

  def forward(self, params, state, frozen):
    return jax.tree.map(lambda leaf: leaf * state["factor"], params)

  def merge(self, params, state, frozen):
    return self.forward(params, state, frozen)


def test_what_a_transform_adds_is_merged(tmp_path, monkeypatch):
  config = ["--config", "configs/gpt2.py:size=124m,debug", "--config.steps=1", "--config.model.kv_heads=4"]
  kind = "--config.transform.kind=tests.storage.test_folders:Halved"
  assert main(["train", *config, kind, "--workdir", str(tmp_path / "run")]) == 0
  assert main(["convert", "--input", str(tmp_path / "run"), "--output", str(tmp_path / "out"), "--trust"]) == 0
  monkeypatch.setenv("LMJAX_TRUST", __name__)
  saved, name = storage.open(tmp_path / "run"), "model/stack/layers/mlp/up/kernel"
  trained = saved.read(name)
  np.testing.assert_array_equal(saved.parameters()[name], trained / 2)
  seen = huggingface.load(tmp_path / "out").params["model"]["stack"]["layers"]["mlp"]["up"]["kernel"]
  np.testing.assert_array_equal(seen, trained / 2)
