"""Adapters in PEFT's format: what is written opens with its base as the merged model, in every family."""

import json
import re
import shutil

import numpy as np
import pytest

from lmjax import storage
from lmjax.__main__ import main
from lmjax.compression.lora import LoRA
from lmjax.storage import safetensors
from lmjax.storage.huggingface.adapter import CONFIG, WEIGHTS, AdapterTensors
from lmjax.utils.errors import UserError
from tests.storage.adapters import random_adapter
from tests.storage.huggingface_folders import SHAPES, write_model

KERNELS = LoRA("model/.*kernel$", 3, 6, {"value": 2, "mlp/up": 4}, {"out": 9.0}, train="^$")


def check(folder, expected):
  parameters = storage.open(folder).parameters()
  assert parameters.keys() == expected.keys()
  for name, array in expected.items():
    rows = parameters[name].rows
    np.testing.assert_allclose(np.asarray(parameters[name])[:rows], array[:rows], atol=1e-5, err_msg=name)


@pytest.mark.parametrize("kind", SHAPES)
def test_an_adapter_of_every_family_comes_back(kind, tmp_path):
  """Several kernels in one tensor, ranks and alphas by pattern, inputs first or outputs first."""
  write_model(tmp_path / "base", kind)
  targets = "attention/.*kernel$|router/kernel$" if "num_experts_per_tok" in SHAPES[kind] else KERNELS.targets
  lora = LoRA(targets, 3, 6, KERNELS.rank_pattern, KERNELS.alpha_pattern, train="^heads/|norm")
  check_folder = tmp_path / "adapter"
  check(check_folder, random_adapter(check_folder, tmp_path / "base", lora))
  config = json.loads((check_folder / CONFIG).read_text())
  assert config["fan_in_fan_out"] == kind.endswith("gpt") or kind == "gpt2"
  assert isinstance(config["target_modules"], list) and config["rank_pattern"] and config["alpha_pattern"]


@pytest.mark.parametrize(
  "change, message",
  [
    (dict(peft_type="LOHA"), "peft_type 'LOHA' is not supported"),
    (dict(use_dora=True), "use_dora true is not supported"),
    (dict(bias="lora_only"), 'bias "lora_only" is not supported'),
    (dict(lora_bias=True), "lora_bias true is not supported"),
    (dict(init_lora_weights="pissa_niter_4"), "init_lora_weights"),
    (dict(layer_replication=[[0, 1]]), "layer_replication"),
    (dict(trainable_token_indices=[3]), "trainable_token_indices"),
    (dict(r="4"), "r must be a whole number"),
    (dict(r=5), "not rank 5"),
    (dict(target_modules=3), "target_modules must be a list"),
    (dict(alpha_pattern={"(": 3}), "not a regular expression"),
    (dict(alpha_pattern={"(a+)+": 3}), "may take long to match"),
    (dict(rank_pattern={".*" * 9: 3}), "may take long to match"),
    (dict(alpha_pattern={"q_proj": "x"}), "must be a finite number"),
    (dict(base_model_name_or_path="someone/model"), "no folder 'someone/model', the base of this adapter; .*--base"),
    (dict(base_model_name_or_path=None), "there is no base"),
  ],
)
def test_what_is_not_supported_is_named(adapter, change, message, tmp_path):
  shutil.copytree(adapter, tmp_path / "adapter")
  file = tmp_path / "adapter" / CONFIG
  file.write_text(json.dumps(json.loads(file.read_text()) | change))
  with pytest.raises(UserError, match=message) as error:
    storage.open(tmp_path / "adapter").parameters()
  assert "\n" not in str(error.value)


@pytest.fixture(scope="module")
def adapter(tmp_path_factory):
  folder = tmp_path_factory.mktemp("adapters")
  write_model(folder / "base", "llama")
  random_adapter(folder / "adapter", folder / "base", LoRA(rank=4))
  return folder / "adapter"


def rewrite(adapter, folder, change):
  """Copies an adapter with its tensors changed by `change(tensors)`."""
  shutil.copytree(adapter, folder)
  stored = AdapterTensors(folder)
  tensors = {name: np.array(stored[name]) for name in stored}
  tensors = change(tensors) or tensors
  shapes = {name: (array.dtype, array.shape) for name, array in tensors.items()}
  safetensors.write(folder / "part", shapes, tensors.values())
  (folder / "part").rename(folder / WEIGHTS)
  return folder


QUERY = "base_model.model.model.layers.0.self_attn.q_proj.lora_"


@pytest.mark.parametrize(
  "change, message",
  [
    (lambda t: t.pop(QUERY + "A.weight") is None, "q_proj has one factor of two"),
    (
      lambda t: {n.replace("q_proj", "z_proj"): a for n, a in t.items()},
      "has no module model.layers.0.self_attn.z_proj",
    ),
    (lambda t: t | {QUERY + "A.weight": np.zeros((4, 31), np.float32)}, r"has factors .* for a weight \[32, 32\]"),
    (lambda t: t | {QUERY + "magnitude_vector": np.zeros(3, np.float32)}, "lora_magnitude_vector is not supported"),
    (lambda t: t | {"weight": np.zeros(3, np.float32)}, "weight is not one of an adapter"),
    (lambda t: t | {"base_model.model.other.weight": np.zeros(3, np.float32)}, "does not use the tensors other.weight"),
  ],
)
def test_tensors_are_checked(adapter, change, message, tmp_path):
  folder = rewrite(adapter, tmp_path / "adapter", lambda tensors: change(tensors) or None)
  with pytest.raises(UserError, match=message) as error:
    storage.open(folder).parameters()
  assert "\n" not in str(error.value)


def test_a_pickle_is_refused(adapter, tmp_path):
  shutil.copytree(adapter, tmp_path / "adapter")
  (tmp_path / "adapter" / WEIGHTS).rename(tmp_path / "adapter" / "adapter_model.bin")
  with pytest.raises(UserError, match="is a pickle"):
    storage.open(tmp_path / "adapter").parameters()


def test_an_adapter_is_merged_into_the_base_that_it_names_or_is_given(adapter, tmp_path):
  """Beside it by a relative path, too."""
  assert main(["convert", "--input", str(adapter), "--output", str(tmp_path / "merged")]) == 0
  merged, expected = storage.open(tmp_path / "merged").parameters(), storage.open(adapter).parameters()
  for name, array in expected.items():
    np.testing.assert_array_equal(np.asarray(merged[name]), np.asarray(array), err_msg=name)
  assert not (tmp_path / "merged" / CONFIG).exists()
  moved = tmp_path / "moved" / "adapter"
  shutil.copytree(adapter, moved)
  config = json.loads((moved / CONFIG).read_text())
  (moved / CONFIG).write_text(json.dumps(config | {"base_model_name_or_path": "elsewhere"}))
  with pytest.raises(UserError, match="--base FOLDER"):
    storage.open(moved)
  given = ["--base", str(adapter.parent / "base"), "--output", str(tmp_path / "given")]
  assert main(["convert", "--input", str(moved), *given]) == 0
  shutil.copytree(adapter.parent / "base", moved.parent / "base")
  (moved / CONFIG).write_text(json.dumps(config | {"base_model_name_or_path": "../base"}))
  assert storage.open(moved).parameters().keys() == expected.keys()


def test_a_table_with_two_uses_is_refused(tmp_path):
  write_model(tmp_path / "base", "gpt2")
  for lora in (LoRA("embed/table"), LoRA(train="embed")):
    with pytest.raises(UserError, match="a table with several uses"):
      random_adapter(tmp_path / "adapter", tmp_path / "base", lora)
  with pytest.raises(UserError, match="by factors and as a whole"):
    random_adapter(tmp_path / "adapter", tmp_path / "base", LoRA(train="query/bias"))
  assert not (tmp_path / "adapter").exists()


def test_target_modules_are_a_pattern_where_no_list_says_it(tmp_path):
  """A BERT has two modules whose names end with output.dense."""
  write_model(tmp_path / "base", "bert")
  folder = tmp_path / "adapter"
  check(folder, random_adapter(folder, tmp_path / "base", LoRA("mlp/down/kernel")))
  targets = json.loads((folder / CONFIG).read_text())["target_modules"]
  assert re.fullmatch(targets, "bert.encoder.layer.1.output.dense")
  assert not re.fullmatch(targets, "bert.encoder.layer.1.attention.output.dense")
