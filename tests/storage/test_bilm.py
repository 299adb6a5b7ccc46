"""Models in bilm-tf's format give bilm-tf's numbers."""

import json
import shutil

import h5py
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lmjax import notebook, storage
from lmjax.__main__ import main
from lmjax.data.tokenizers.spelling import spell
from lmjax.storage import bilm
from lmjax.utils.errors import UserError


def spelt(sentences: list[list[str]]) -> np.ndarray:
  longest = max(map(len, sentences)) + 2
  characters = np.zeros((len(sentences), longest, 50), np.int32)
  for row, sentence in enumerate(sentences):
    for column, word in enumerate(["<S>", *sentence, "</S>"]):
      characters[row, column] = spell(word)
  return characters


def test_embeddings_are_those_of_bilm_tf_batch_after_batch(data):
  folder = data / "elmo_bilm"
  model, params = bilm.load(folder)
  texts = json.loads((folder / "lm_embeddings_sentences.json").read_text())
  run = jax.jit(lambda characters, states: model.apply({"params": params}, characters, states, method="layers"))
  states, seen = model.empty(3), 0
  with h5py.File(folder / "lm_embeddings_0.hdf5", "r") as expected:
    for i in range(10):
      batch = [texts[k][i].strip().split() for k in range(3)]  # the other rows have other lengths
      characters = spelt(batch)
      characters = np.pad(characters, ((0, 0), (0, 60 - characters.shape[1]), (0, 0)))  # one shape, and padding
      layers, states = run(jnp.asarray(characters), states)
      wanted = np.concatenate([expected[str(i)][0], expected[str(i)][1]], axis=-1)  # the top layer, both directions
      top = layers[-1, 0, 1 : len(batch[0]) + 1]
      np.testing.assert_allclose(top, wanted, atol=1e-5)
      seen += len(wanted)
  assert seen > 250


def test_the_names_of_published_models_have_a_prefix(data, tmp_path):
  for name, copy in (("options.json", "small_options.json"), ("lm_weights.hdf5", "small_weights.hdf5")):
    shutil.copy(data / "elmo_bilm" / name, tmp_path / copy)
  saved = storage.open(tmp_path)
  assert isinstance(saved, bilm.BilmFolder) and set(saved.files()) == {"small_options.json", "small_weights.hdf5"}
  assert set(saved.leaves) == set(storage.open(data / "elmo_bilm").leaves) and saved.task.model.config.width == 16
  shutil.copy(tmp_path / "small_weights.hdf5", tmp_path / "large_weights.hdf5")
  with pytest.raises(UserError, match="several models"):
    bilm.load(tmp_path)


def test_a_folder_that_is_not_bilm_tf_is_refused(data, tmp_path):
  with pytest.raises(UserError, match="needs options.json"):
    bilm.load(tmp_path)
  for name in ("options.json", "lm_weights.hdf5"):
    shutil.copy(data / "elmo_bilm" / name, tmp_path / name)
    (tmp_path / name).chmod(0o644)
  options = json.loads((tmp_path / "options.json").read_text())
  options["lstm"]["dim"] = 65
  (tmp_path / "options.json").write_text(json.dumps(options))
  with pytest.raises(UserError, match=r"W_0 has shape \[32, 256\]"):
    bilm.load(tmp_path)
  whole = (tmp_path / "lm_weights.hdf5").read_bytes()
  (tmp_path / "lm_weights.hdf5").write_bytes(whole[: len(whole) // 2])
  with pytest.raises(UserError, match="cannot be read"):
    bilm.load(tmp_path)


def test_commands_and_the_notebook_take_such_a_folder(data, tmp_path, capsys):
  folder = str(data / "elmo_bilm")
  text = json.loads((data / "elmo_bilm" / "lm_embeddings_sentences.json").read_text())[0][0].strip()
  (tmp_path / "in.txt").write_text(text + "\n")
  options = ["--input", str(tmp_path / "in.txt"), "--level", "token", "--words", "--output", str(tmp_path / "out.npz")]
  assert main(["embed", "--workdir", folder, *options]) == 0
  with h5py.File(data / "elmo_bilm" / "lm_embeddings_0.hdf5", "r") as expected:
    wanted = np.concatenate([expected["0"][0], expected["0"][1]], axis=-1)
  np.testing.assert_allclose(np.load(tmp_path / "out.npz")["0"], wanted, atol=1e-5)
  assert main(["show", folder]) == 0
  assert "forwards_1/hidden" in capsys.readouterr().out
  run = notebook.load(folder)
  assert run.config["lstm"]["dim"] == 64 and len(run.table().rows) == 37
  assert run.embed([text]).shape == (1, 32)
  for command in (["convert", "--input", folder, "--output", str(tmp_path / "no")], ["generate", "--workdir", folder]):
    assert main([*command, *(["--prompt", "a"] if command[0] == "generate" else [])]) == 2
  errors = capsys.readouterr().err
  assert (
    "ELMo models have no Hugging Face equivalent" in errors
    and "cannot generate text" in errors
    and not (tmp_path / "no").exists()
  )
