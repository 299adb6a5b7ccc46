"""Tensors under other names, stored twice or not at all: the same model, or one line that names the tensor."""

import dataclasses
import json

import jax
import numpy as np
import pytest

from lmjax.models.encoder_decoder import EncoderDecoder
from lmjax.storage import huggingface, safetensors
from lmjax.storage.huggingface.families import FAMILIES
from lmjax.utils.errors import UserError
from lmjax.utils.fields import Fields
from tests.storage.huggingface_folders import SHAPES, D, V, tensors_of, write_model, write_tensors

KINDS = list(FAMILIES)
OF_SCORES = ("lm_head", "embed_out", "cls", "vo", "generator_", "predictions", "final_",
             "head.", "decoder.weight", "decoder.bias")  # fmt: skip
MASKED = [kind for kind in KINDS if FAMILIES[kind].unembed_bias]


def tied_by_default(kind):
  """Returns whether the embedding table of a family scores tokens where config.json does not say it."""
  return FAMILIES[kind].from_hf(Fields({}, "config.json")).tie_embeddings


@pytest.fixture(params=KINDS)
def model(request, tmp_path):
  """Returns (kind, folder, what is in it)."""
  tied = tied_by_default(request.param)
  return request.param, tmp_path / "a", write_model(tmp_path / "a", request.param, tie_word_embeddings=tied)


def assert_same(loaded, other):
  assert loaded.model.config == other.model.config
  jax.tree.map(np.testing.assert_array_equal, loaded.arrays(), other.params)


def refused(folder, *words):
  with pytest.raises(UserError) as error:
    huggingface.load(folder)
  assert "\n" not in str(error.value) and all(word in str(error.value) for word in words), error.value


def test_wrappers_change_nothing(model):
  kind, folder, loaded = model
  tensors = tensors_of(folder)
  for wrap in ("_orig_mod.", "module.", "model.", "module._orig_mod.", "_orig_mod.module.model.", "0.auto_model."):
    write_tensors(folder, {wrap + name: array for name, array in tensors.items()})
    assert_same(huggingface.load(folder), loaded)
  write_tensors(folder, {name.replace(".0.", "._orig_mod.0."): array for name, array in tensors.items()})
  assert_same(huggingface.load(folder), loaded)


def test_the_beginning_of_the_models_names_may_be_left_out(model):
  kind, folder, loaded = model
  prefix = FAMILIES[kind].prefix.get("", "")
  write_tensors(folder, {name.removeprefix(prefix): array for name, array in tensors_of(folder).items()})
  assert_same(huggingface.load(folder), loaded)


def test_norms_may_be_called_gamma_and_beta(model):
  kind, folder, loaded = model

  def old(name):
    if not any(part in name.lower() for part in ("norm", "ln_")):
      return name
    return name.removesuffix(".weight") + ".gamma" if name.endswith(".weight") else name.replace(".bias", ".beta")

  tensors = tensors_of(folder)
  write_tensors(folder, {old(name): array for name, array in tensors.items()})
  assert any(name.endswith("gamma") for name in tensors_of(folder))
  assert_same(huggingface.load(folder), loaded)
  write_tensors(folder, {old(name): array for name, array in tensors.items()} | tensors)
  refused(folder, "same tensor", "gamma")


def embedding(kind, folder):
  """Returns the name of the embedding table in a folder, and its values."""
  tensors = tensors_of(folder)
  name = next(name for name, array in tensors.items() if len(array) == V and array.ndim == 2)
  return name, tensors


def test_a_shared_table_may_be_stored_under_each_of_its_names(model):
  kind, folder, _ = model
  family = FAMILIES[kind]
  loaded = write_model(folder.with_name("tied"), kind, tie_word_embeddings=True)
  name, tensors = embedding(kind, folder.with_name("tied"))
  others = [family.unembed, *family.copies]
  for other in others:  # under another name only
    rest = {key: array for key, array in tensors.items() if key != name}
    write_tensors(folder, rest | {other: tensors[name]}, tie_word_embeddings=True)
    assert_same(huggingface.load(folder), loaded)
  write_tensors(folder, tensors | dict.fromkeys(others, tensors[name]))  # under all
  assert_same(huggingface.load(folder), loaded)


def test_two_tables_are_two_and_a_contradiction_is_printed(model, capsys):
  kind, folder, _ = model
  family = FAMILIES[kind]
  folder = folder.with_name("tied")
  write_model(folder, kind, tie_word_embeddings=True)
  name, tensors = embedding(kind, folder)
  write_tensors(folder, tensors | {family.unembed: 2 * tensors[name]})
  both = huggingface.load(folder)
  line = capsys.readouterr().err
  assert name in line and family.unembed in line and line.count("\n") == 1
  params = both.params["model"]
  np.testing.assert_array_equal(params["unembed"]["table"][:V], 2 * params["embed"]["table"][:V])
  write_tensors(folder, tensors_of(folder), tie_word_embeddings=False)
  assert_same(huggingface.load(folder), dataclasses.replace(both, params=both.arrays()))
  assert capsys.readouterr().err == ""
  for other in family.copies:  # one tensor in every model of the family
    write_tensors(folder, tensors | {other: 2 * tensors[name]})
    refused(folder, name, other)


def test_an_untied_model_is_written_and_read_again(model, tmp_path):
  kind, folder, _ = model
  family = FAMILIES[kind]
  name, tensors = embedding(kind, folder)
  write_tensors(folder, tensors | {family.unembed: 2 * tensors[name]}, tie_word_embeddings=False)
  loaded = huggingface.load(folder)
  huggingface.save(tmp_path / "again", loaded.model, loaded.params, settings=loaded.settings)
  again = huggingface.load(tmp_path / "again")
  assert_same(loaded, dataclasses.replace(again, params=again.arrays()))
  assert family.unembed in safetensors.Tensors(tmp_path / "again")
  if FAMILIES[kind].module is not EncoderDecoder:  # whose table scores unless there is another
    write_tensors(folder, tensors, tie_word_embeddings=False)
    architectures = json.loads((folder / "config.json").read_text())["architectures"]
    if not tied_by_default(kind):
      tensors.pop(family.unembed)
      write_tensors(folder, tensors)
    refused(folder, family.unembed, "tie_word_embeddings")
    assert architectures


@pytest.mark.parametrize("kind", MASKED)
def test_the_bias_of_masked_tokens_has_two_names(kind, tmp_path, capsys):
  family, loaded = FAMILIES[kind], write_model(tmp_path / "a", kind)
  tensors = tensors_of(tmp_path / "a")
  name = family.unembed_bias.replace("decoder.", "")
  bias = tensors.pop(name)
  write_tensors(tmp_path / "a", tensors | {family.unembed_bias: bias})
  assert_same(huggingface.load(tmp_path / "a"), loaded)
  write_tensors(tmp_path / "a", tensors | {family.unembed_bias: bias, name: bias})
  assert_same(huggingface.load(tmp_path / "a"), loaded)
  assert not capsys.readouterr().err
  write_tensors(tmp_path / "a", tensors | {family.unembed_bias: bias, name: 0 * bias})
  assert_same(huggingface.load(tmp_path / "a"), loaded)
  assert name in capsys.readouterr().err


def test_the_head_of_masked_tokens_of_a_deberta_has_two_names(tmp_path):
  """Its new names are in what is published as version 3, and transformers' `legacy` false writes them."""
  loaded, folder = write_model(tmp_path / "a", "deberta-v2"), tmp_path / "a"
  tensors, renamed = tensors_of(folder), FAMILIES["deberta-v2"].renamed
  new = {name: tensors[old] for name, old in renamed.items()}
  rest = {name: array for name, array in tensors.items() if name not in renamed.values()}
  discriminator = {f"mask_predictions.{name}.weight": np.ones((D, D)) for name in ("dense", "classifier")}
  write_tensors(folder, rest | new | discriminator, legacy=False)
  assert_same(huggingface.load(folder), loaded)
  huggingface.save(tmp_path / "again", loaded.model, loaded.params, settings=loaded.settings)
  assert json.loads((tmp_path / "again" / "config.json").read_text())["legacy"] is True
  assert set(safetensors.Tensors(tmp_path / "again")) == set(tensors)
  write_tensors(folder, tensors | new)
  refused(folder, "lm_predictions", "cls.predictions", "two names")


def test_the_kind_of_model_may_be_left_out(model, capsys):
  kind, folder, loaded = model
  write_tensors(folder, tensors_of(folder), model_type=...)
  assert_same(huggingface.load(folder), loaded)
  line = capsys.readouterr().err
  assert kind in line and "architectures" in line and line.count("\n") == 1
  write_tensors(folder, tensors_of(folder), architectures=...)
  guessed = huggingface.load(folder)
  line = capsys.readouterr().err
  assert "names of the tensors" in line
  # Families with the same names differ in the keys of config.json, except where they are the same model.
  kind = "roberta" if kind in ("xlm-roberta", "camembert") else kind
  assert f"taken to be {kind}," in line
  assert_same(guessed, loaded)


@pytest.mark.long
def test_a_base_model_or_an_encoder_alone_has_no_scores(tmp_path):
  from lmjax.storage.huggingface.folder import task_of
  from lmjax.tasks.encode import Encode

  plain = lambda name: name.removeprefix("language_model.")  # noqa: E731  # where a LLaVA has its decoder
  for kind in KINDS:
    write_model(tmp_path / kind, kind, tie_word_embeddings=False)
    family, folder = FAMILIES[kind], tmp_path / kind
    tensors = {name: array for name, array in tensors_of(folder).items() if not plain(name).startswith(OF_SCORES)}
    ending = "EncoderModel" if kind in ("t5", "mt5") else "Model"
    if ending == "EncoderModel":
      tensors = {name: array for name, array in tensors.items() if not name.startswith("decoder.")}
    write_tensors(folder, tensors, architectures=[family.hf_prefix + ending])
    loaded = huggingface.load(folder)
    assert isinstance(task_of(loaded), Encode), kind
    huggingface.save(tmp_path / f"{kind}-again", loaded.model, loaded.params, settings=loaded.settings)
    assert_same(huggingface.load(tmp_path / f"{kind}-again"), dataclasses.replace(loaded, params=loaded.arrays()))
    written = json.loads((tmp_path / f"{kind}-again" / "config.json").read_text())
    assert written["architectures"] == [family.hf_prefix + ending]
    assert kind in ("t5", "mt5") or written["tie_word_embeddings"] is False


@pytest.mark.parametrize("dtype", ["F8_E4M3", "F8_E5M2", "I8", "U8", "I32", "BOOL", "C64"])
def test_weights_that_are_no_floats_are_unsupported_not_corrupt(tmp_path, dtype):
  write_model(tmp_path / "a", "gpt2")
  tensors = tensors_of(tmp_path / "a")
  for name in ("transformer.h.1.mlp.c_fc.weight", "transformer.ln_f.bias"):
    stored = tensors[name].astype(safetensors.DTYPES[dtype])
    write_tensors(tmp_path / "a", tensors | {name: stored})
    refused(tmp_path / "a", name, "not supported")
  unused = np.ones((1, 1, 24, 24)).astype(safetensors.DTYPES[dtype])
  write_tensors(tmp_path / "a", tensors | {"transformer.h.0.attn.bias": unused})  # a mask, whatever its type
  huggingface.load(tmp_path / "a")


def test_the_index_decides_which_file_has_a_tensor(tmp_path):
  loaded, folder = write_model(tmp_path / "a", "llama"), tmp_path / "a"
  tensors = tensors_of(folder)
  name, *names = tensors
  first, second = {n: tensors[n] for n in (name, *names[:5])}, {n: tensors[n] for n in names[5:]}
  for file, part in (("1.safetensors", first), ("2.safetensors", second | {name: 0 * tensors[name]})):
    safetensors.write(folder / file, {n: (a.dtype, a.shape) for n, a in part.items()}, part.values())
  (folder / "model.safetensors").unlink()
  index = {n: "1.safetensors" if n in first else "2.safetensors" for n in tensors}
  (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
  assert_same(huggingface.load(folder), loaded)
  (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index | {"odd": "1.safetensors"}}))
  refused(folder, "odd", "1.safetensors")
  index.pop(name)
  (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
  refused(folder, name, "also in")


def test_all_shapes_are_there():
  assert set(SHAPES) == set(FAMILIES)
