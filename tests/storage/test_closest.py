"""What an unknown architecture's error suggests: a model of the same kind and structure, whatever the name is."""

import json

import pytest

from lmjax.storage import huggingface
from lmjax.storage.huggingface.closest import closest, kind_of
from lmjax.storage.huggingface.families import FAMILIES
from lmjax.utils.errors import UserError
from lmjax.utils.fields import Fields
from tests.storage.huggingface_folders import SHAPES, write_model, write_tensors

# Model types that are spelled like a family of another kind, or like none.
NAMES = ("bert4", "t5x", "gpt3", "llamb", "optimus", "unheard-of")
# Configs of other architectures, shortened, and families that are right.
DECODER = dict(vocab_size=50, hidden_size=32, num_hidden_layers=2, num_attention_heads=4)
OTHERS = {
  "falcon": (DECODER | dict(layer_norm_epsilon=1e-5, activation="gelu", ffn_hidden_size=128), ("gpt_neox", "phi")),
  "olmoe": (
    DECODER | dict(hidden_act="silu", rms_norm_eps=1e-5, num_key_value_heads=2, num_experts=8, num_experts_per_tok=2),
    ("mixtral", "qwen3_moe"),
  ),
  "bloom": (dict(vocab_size=50, hidden_size=32, n_layer=2, n_head=4, layer_norm_epsilon=1e-5), ("gpt2",)),
  "olmo": (
    DECODER | dict(hidden_act="silu", rms_norm_eps=1e-5, rope_theta=1e4, num_key_value_heads=2, intermediate_size=64),
    ("llama", "mistral", "phi3"),
  ),
}


@pytest.mark.parametrize("kind", sorted(set(FAMILIES) - {"llava"}))  # which reads images, and so resembles none
def test_a_renamed_family_is_recognised(kind):
  """By its keys: the suggestion reads the config as the same kind of model."""
  family = FAMILIES[kind]
  config = family.to_hf(family.from_hf(Fields(SHAPES[kind], "config.json")))
  config |= dict(architectures=["Other" + family.architecture([]).removeprefix(family.hf_prefix)])
  for name in NAMES:
    text = closest(Fields(json.loads(json.dumps(config | dict(model_type=name))), "config.json"))
    suggested = FAMILIES[text.split("'")[1]]
    assert kind_of(suggested) == kind_of(family), text
    assert suggested.config is family.config


@pytest.mark.parametrize("name", OTHERS)
def test_a_decoder_is_like_a_decoder(name):
  config, right = OTHERS[name]
  text = closest(Fields(config | dict(architectures=["OtherForCausalLM"]), "config.json"))
  assert text.split("'")[1] in right and "a decoder" in text


def test_what_is_no_transformer_of_text_is_like_nothing():
  for more in (dict(num_attention_heads=None), dict(vision_config={}), dict(image_size=3), dict(num_mel_bins=8)):
    assert closest(Fields(DECODER | more | dict(architectures=["OtherForCausalLM"]), "config.json")) == ""
  for names in (None, [], "x", 3, [3], ["Other"]):
    closest(Fields(DECODER | dict(architectures=names), "config.json"))


def test_the_error_of_a_folder_says_it(tmp_path):
  write_model(tmp_path / "a", "bert")
  for keys in (dict(model_type="gpt-bert"), dict(model_type=None, architectures=["GptBertForMaskedLM"])):
    write_tensors(tmp_path / "a", {}, **keys)
    with pytest.raises(UserError, match="closest to that of '(bert|electra|xlm-roberta)', an encoder"):
      huggingface.load(tmp_path / "a")
