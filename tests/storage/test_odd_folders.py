"""Folders of every kind and with every fault: each command succeeds or says in one line why not."""

import json

import numpy as np
import pytest

from lmjax.__main__ import main
from lmjax.commands.convert import check
from lmjax.data.tokenizers.registry import train
from lmjax.storage import huggingface
from lmjax.storage.huggingface import tokenizer as tokenizer_files
from lmjax.storage.huggingface.families import FAMILIES
from lmjax.utils.errors import UserError
from lmjax.utils.fields import Fields
from tests.storage.huggingface_folders import (
  SHAPES,
  tensors_of,
  write_classifier,
  write_model,
  write_tensors,
  write_without_scores,
)

ODD = (None, True, -1, 0, 1, 1.5, 10**12, -1e300, float("nan"), "", "x", "gelu", [], {}, [1], ["x"], {"a": 1}, [None])
MORE_KEYS = (
  "architectures", "rope_parameters", "rope_scaling", "rope_theta", "layer_types", "quantization_config", "chunk",
  "pruned_heads",
  "head_dim", "num_key_value_heads", "sliding_window", "tie_word_embeddings", "hidden_act", "afn", "activation",
  "activation_function", "feed_forward_proj", "dense_act_fn", "n_inner", "pad_token_id", "decoder_start_token_id",
  "num_decoder_layers", "partial_rotary_factor", "id2label", "model_type", "hidden_size", "use_sliding_window",
  "attn_logit_softcapping", "final_logit_softcapping", "query_pre_attn_scalar", "attention_multiplier",
  "logits_scaling", "embedding_multiplier", "residual_multiplier", "sliding_window_pattern", "rope_local_base_freq",
  "rotary_pct", "rotary_emb_base", "word_embed_proj_dim", "do_layer_norm_before", "hidden_activation",
  "use_parallel_residual", "qk_layernorm", "attention_bias",
  "max_window_layers", "scale_attn_weights", "scale_attn_by_inverse_layer_idx", "is_decoder", "max_position_embeddings",
)  # fmt: skip
ROPE_KEYS = ("factor", "rope_theta", "original_max_position_embeddings", "attention_factor", "beta_fast", "beta_slow",
             "mscale", "truncate", "short_factor", "long_factor", "low_freq_factor", "high_freq_factor")  # fmt: skip


def family_has_rotary(kind):
  """Returns whether a family of transformers has rotary positions, by its default config."""
  return getattr(FAMILIES[kind].from_hf(Fields({}, "config.json")), "rotary", None) is not None


@pytest.mark.parametrize("kind", FAMILIES)
def test_a_value_of_any_type_is_read_or_refused_by_name(kind, tmp_path):
  """Of every key; `fields.where` and the key are in the message."""
  read = FAMILIES[kind].from_hf
  for key in (*SHAPES[kind], *MORE_KEYS):
    for value in ODD:
      try:
        read(Fields(SHAPES[kind] | {key: value}, "config.json"))
      except UserError as error:
        assert "config.json" in str(error) and "\n" not in str(error)
  if family_has_rotary(kind):
    for scaling in ("linear", "dynamic", "yarn", "llama3", "longrope", "odd"):
      rope = dict(rope_type=scaling, factor=2.0, low_freq_factor=1.0, high_freq_factor=4.0) | {
        key: [1.0] * 4 for key in ("short_factor", "long_factor")
      }
      for key in ROPE_KEYS:
        for value in ODD:
          try:
            read(Fields(SHAPES[kind] | {"rope_parameters": rope | {key: value}}, "config.json"))
          except UserError as error:
            assert "config.json" in str(error)


@pytest.mark.parametrize("key", ["architectures", "model_type", "pad_token_id", "decoder_start_token_id", "id2label"])
@pytest.mark.parametrize("kind", ["gpt2", *(pytest.param(kind, marks=pytest.mark.long) for kind in ("t5", "bert"))])
def test_folders_with_odd_values_are_opened_or_refused(kind, key, tmp_path):
  write_model(tmp_path / "a", kind)
  for value in ODD:
    write_tensors(tmp_path / "a", tensors_of(tmp_path / "a"), **{key: value})
    try:
      huggingface.load(tmp_path / "a")
    except UserError as error:
      assert "\n" not in str(error)


@pytest.mark.parametrize("kind", FAMILIES)
def test_a_tensor_of_any_shape_is_refused_by_name(kind, tmp_path):
  write_model(tmp_path / "a", kind)
  tensors = tensors_of(tmp_path / "a")
  for name in list(tensors)[:: max(len(tensors) // 7, 1)]:
    for array in (np.float32(1), np.zeros((0, 3), np.float32), tensors[name][None], tensors[name][1:]):
      write_tensors(tmp_path / "a", tensors | {name: np.asarray(array)})
      with pytest.raises(UserError, match=name.rpartition(".")[0]):
        huggingface.load(tmp_path / "a")
    write_tensors(tmp_path / "a", {key: array for key, array in tensors.items() if key != name})
    with pytest.raises(UserError, match="missing|does not use"):
      huggingface.load(tmp_path / "a")


FAST = ("bert-sequence", "gpt2-base", "t5")  # the others are long
FOLDERS = {
  "bert-sequence": lambda path: write_classifier(path, "bert", "sequence"),
  "bert-base": lambda path: write_without_scores(path, "bert"),
  "gpt2-base": lambda path: write_without_scores(path, "gpt2"),
  "llama-base": lambda path: write_without_scores(path, "llama"),
  "llama-span": lambda path: write_classifier(path, "llama", "span"),
  "t5": lambda path: write_model(path, "t5") and path,
  "t5-base": lambda path: write_without_scores(path, "t5"),
  "t5-encoder": lambda path: write_without_scores(path, "t5", "EncoderModel"),
  "t5-sequence": lambda path: write_classifier(path, "t5", "sequence"),
  "t5-tokens": lambda path: write_classifier(path, "t5", "tokens"),
}


@pytest.mark.parametrize("name", [n if n in FAST else pytest.param(n, marks=pytest.mark.long) for n in FOLDERS])
def test_every_command_succeeds_or_says_why_not(name, tmp_path, capsys):
  folder = FOLDERS[name](tmp_path / "a")
  (tmp_path / "in.txt").write_text("the fox\n")
  embed = ["embed", "--input", str(tmp_path / "in.txt"), "--output", str(tmp_path / "o.npz"), "--workdir", str(folder)]
  commands = {
    "show": ["show", str(folder)], "values": ["show", str(folder), "--values"], "embed": embed,
    "fill": ["fill", "--workdir", str(folder), "a [MASK]"],
    "generate": ["generate", "--workdir", str(folder), "--prompt", "a", "--max_new_tokens", "1"],
    "evaluate": ["evaluate", "--workdir", str(folder)],
    "convert": ["convert", "--input", str(folder), "--output", str(tmp_path / "out")],
  }  # fmt: skip
  succeed = {"show", "values", "convert"}
  for with_tokenizer in (False, True):
    if with_tokenizer:
      tokenizer_files.write(folder, train("characters", ["the fox jumps"], 40), "")
      succeed |= {"embed"} | ({"generate"} if name in ("t5", "t5-base") else set())
      commands = {key: commands[key] for key in ("embed", "fill", "generate")}
    for key, command in commands.items():
      capsys.readouterr()
      code = main(command)
      error = capsys.readouterr().err
      assert code == (0 if key in succeed else 2), (key, error)
      assert error.count("\n") == (0 if key in succeed else 1), error
  vectors = np.load(tmp_path / "o.npz")["embeddings"]
  assert vectors.shape == (1, 32) and np.all(np.isfinite(vectors))


@pytest.mark.torch
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", FOLDERS)
def test_every_folder_agrees_with_transformers(name, tmp_path):
  folder = FOLDERS[name](tmp_path / "a")
  assert check(folder)[0] < 1e-4
  loaded = huggingface.load(folder)
  huggingface.save(tmp_path / "again", loaded.model, loaded.params, settings=loaded.settings)
  assert check(tmp_path / "again")[0] < 1e-4


@pytest.mark.torch
@pytest.mark.filterwarnings("ignore")
def test_what_transformers_cannot_open_is_one_line(tmp_path, capsys):
  write_classifier(tmp_path / "a", "llama", "sequence")
  write_tensors(tmp_path / "a", tensors_of(tmp_path / "a"), id2label={"0": "a"})
  assert main(["convert", "--check", str(tmp_path / "a")]) == 2
  assert "transformers cannot open" in capsys.readouterr().err.splitlines()[-1]


def test_show_opens_a_flax_folder_by_its_config_alone(tmp_path, capsys):
  from flax import serialization

  for kind in FAMILIES:
    folder = tmp_path / kind
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"model_type": kind}))
    tree = {"shared": {"embedding": np.ones((4, 2), np.float32)}}
    (folder / "flax_model.msgpack").write_bytes(serialization.msgpack_serialize(tree))
    assert main(["show", str(folder)]) == 0
    assert "shared/weight" in capsys.readouterr().out


@pytest.mark.torch
@pytest.mark.filterwarnings("ignore")
def test_a_check_fails_where_values_differ(tmp_path, capsys, monkeypatch):
  folder = FOLDERS[next(iter(FOLDERS))](tmp_path / "a")
  assert main(["convert", "--check", str(folder)]) == 0
  capsys.readouterr()
  monkeypatch.setattr("lmjax.commands.convert.TOLERANCE", 0.0)
  assert main(["convert", "--check", str(folder)]) == 2
  assert "different values" in capsys.readouterr().err.splitlines()[-1]
