"""Adapters beside PEFT's own: equal logits of what PEFT wrote, and of what lmjax wrote."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lmjax import storage
from lmjax.compression.lora import LoRA
from tests.storage.adapters import random_adapter
from tests.storage.huggingface_folders import write_classifier, write_model

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
peft = pytest.importorskip("peft")
pytestmark = [pytest.mark.torch, pytest.mark.filterwarnings("ignore")]

CLASSES = {
  "llama": "LlamaForCausalLM", "gpt2": "GPT2LMHeadModel", "bert": "BertForMaskedLM", "t5": "T5ForConditionalGeneration",
}  # fmt: skip
IDS = np.random.default_rng(0).integers(3, 50, (2, 12))


def logits_of(folder):
  """Returns the logits of lmjax."""
  saved = storage.open(folder)
  batch = {"inputs": jnp.asarray(IDS), "segments": jnp.ones(IDS.shape, jnp.int32), "token_types": jnp.zeros_like(IDS)}
  batch["positions"] = jnp.broadcast_to(jnp.arange(12), IDS.shape)
  if saved.task.model.kind == "encoder_decoder":
    batch |= {f"decoder_{key}": batch[key] for key in ("inputs", "positions", "segments")}
  params = jax.tree.map(jnp.asarray, saved._loaded.params)
  return np.asarray(saved.task.forward(params, batch).logits)


def logits_of_peft(model):
  ids = {"input_ids": torch.tensor(IDS)}
  if model.config.is_encoder_decoder:
    ids["decoder_input_ids"] = torch.tensor(IDS)
  with torch.no_grad():
    return model.eval()(**ids).logits.numpy()


def base_model(folder, name):
  return getattr(transformers, name).from_pretrained(str(folder), dtype=torch.float32, attn_implementation="eager")


def with_noise(model):
  """Returns a PEFT model all of whose new weights are random."""
  torch.manual_seed(0)
  for _name, parameter in model.named_parameters():
    if parameter.requires_grad:
      parameter.data.add_(0.1 * torch.randn_like(parameter))
  return model


def compare(adapter, model, base):
  ours, theirs = logits_of(adapter), logits_of_peft(model)
  np.testing.assert_allclose(ours, theirs, atol=1e-5 * max(1, np.abs(theirs).max() / 10))
  assert np.abs(theirs - logits_of(base)).max() > 1e-2


OPTIONS = {
  "list": dict(target_modules={
    "llama": ["q_proj", "v_proj", "down_proj"], "gpt2": ["c_attn", "c_proj"], "bert": ["query", "output.dense"],
    "t5": ["q", "wo"],
  }),
  "regex": dict(target_modules={
    "llama": r".*\.1\.(self_attn|mlp)\.(k_proj|gate_proj)", "gpt2": r".*\.h\.0\..*c_fc", "bert": r".*layer\.1.*dense",
    "t5": r"decoder.*\.(k|wi)",
  }, use_rslora=True),
  "all": dict(target_modules=dict.fromkeys(CLASSES, "all-linear")),
  "layers": dict(target_modules={
    "llama": ["q_proj"], "gpt2": ["c_attn"], "bert": ["query"], "t5": ["q"]}, layers_to_transform=[1]),
}  # fmt: skip


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("kind", CLASSES)
def test_what_peft_wrote_has_its_logits(kind, options, tmp_path):
  write_model(tmp_path / "base", kind)
  more = OPTIONS[options]
  fields = more | dict(target_modules=more["target_modules"][kind])
  if options == "all":
    patterns = {"llama": "q_proj", "gpt2": r"h\.\d+\.attn\.c_attn", "bert": "attention.output.dense", "t5": "wi"}
    fields |= dict(rank_pattern={patterns[kind]: 2}, alpha_pattern={patterns[kind]: 7})
    saved = {"llama": ["norm"], "gpt2": ["ln_f"], "bert": ["transform"], "t5": ["final_layer_norm"]}
    fields |= dict(modules_to_save=saved[kind])
  config = peft.LoraConfig(r=4, lora_alpha=6, fan_in_fan_out=kind == "gpt2", **fields)
  model = with_noise(peft.get_peft_model(base_model(tmp_path / "base", CLASSES[kind]), config))
  model.save_pretrained(str(tmp_path / "adapter"))
  compare(tmp_path / "adapter", model, tmp_path / "base")


@pytest.mark.parametrize(
  "kind, targets", [("llama", ["embed_tokens"]), ("llama", ["lm_head", "q_proj"]), ("gpt2", ["wte"])]
)
@pytest.mark.parametrize("tied", [True, False])
def test_tables_of_words(kind, targets, tied, tmp_path):
  """PEFT changes one use of a table that has two."""
  write_model(tmp_path / "base", kind, tie_word_embeddings=tied)
  config = peft.LoraConfig(r=4, lora_alpha=6, target_modules=targets)
  model = with_noise(peft.get_peft_model(base_model(tmp_path / "base", CLASSES[kind]), config))
  model.save_pretrained(str(tmp_path / "adapter"))
  compare(tmp_path / "adapter", model, tmp_path / "base")


@pytest.mark.parametrize("table", ["embed_tokens", "lm_head"])
@pytest.mark.parametrize("tied", [True, False])
def test_tables_that_were_saved_whole(table, tied, tmp_path):
  write_model(tmp_path / "base", "llama", tie_word_embeddings=tied)
  config = peft.LoraConfig(r=4, target_modules=["q_proj"], modules_to_save=[table])
  model = with_noise(peft.get_peft_model(base_model(tmp_path / "base", CLASSES["llama"]), config))
  model.save_pretrained(str(tmp_path / "adapter"))
  loaded = peft.PeftModel.from_pretrained(base_model(tmp_path / "base", CLASSES["llama"]), str(tmp_path / "adapter"))
  compare(tmp_path / "adapter", loaded, tmp_path / "base")


WRITTEN = {
  "pattern": LoRA("model/stack/.*kernel$|model/(en|de)coder/.*kernel$", 3, 6, {"value": 2, "mlp/up": 4},
                  {"out": 9.0}, train="^heads/|norm"),
  "queries": LoRA("query/kernel", 4, 4, rank_stabilized=True, train="^heads/"),
  "one_of_many": LoRA("/mlp/down/kernel", 4, 4, train="^heads/"),
}  # fmt: skip


@pytest.mark.parametrize("written", WRITTEN)
@pytest.mark.parametrize("kind", CLASSES)
def test_what_lmjax_wrote_has_the_same_logits_in_peft(kind, written, tmp_path):
  write_model(tmp_path / "base", kind)
  random_adapter(tmp_path / "adapter", tmp_path / "base", WRITTEN[written])
  base = base_model(tmp_path / "base", CLASSES[kind])
  model, info = peft.PeftModel.from_pretrained(base, str(tmp_path / "adapter")), None
  loaded = model.load_adapter(str(tmp_path / "adapter"), adapter_name="again")
  assert not loaded.unexpected_keys, info
  compare(tmp_path / "adapter", model, tmp_path / "base")


def test_an_untied_table_in_peft(tmp_path):
  write_model(tmp_path / "base", "llama", tie_word_embeddings=False)
  random_adapter(tmp_path / "adapter", tmp_path / "base", LoRA("table$", 4, 4))
  base = base_model(tmp_path / "base", CLASSES["llama"])
  compare(tmp_path / "adapter", peft.PeftModel.from_pretrained(base, str(tmp_path / "adapter")), tmp_path / "base")


@pytest.mark.parametrize(
  "kind, head, name", [("bert", "sequence", "Sequence"), ("bert", "tokens", "Token"), ("llama", "sequence", "Sequence")]
)
def test_classifiers(kind, head, name, tmp_path):
  """In both directions; the head is saved whole."""
  write_classifier(tmp_path / "base", kind, head)
  class_name = f"{CLASSES[kind].split('For')[0]}For{name}Classification"
  task_type = {"Sequence": "SEQ_CLS", "Token": "TOKEN_CLS"}[name]
  targets = {"bert": ["query"], "llama": ["q_proj"]}[kind]
  config = peft.LoraConfig(task_type=task_type, r=4, target_modules=targets)
  model = base_model(tmp_path / "base", class_name)
  model.config.pad_token_id = -1
  model = with_noise(peft.get_peft_model(model, config))
  model.save_pretrained(str(tmp_path / "adapter"))
  compare(tmp_path / "adapter", model, tmp_path / "base")
  random_adapter(tmp_path / "ours", tmp_path / "base", LoRA("query/kernel", 4, 4))
  model = base_model(tmp_path / "base", class_name)
  model.config.pad_token_id = -1
  compare(tmp_path / "ours", peft.PeftModel.from_pretrained(model, str(tmp_path / "ours")), tmp_path / "base")
