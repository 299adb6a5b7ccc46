"""Fine-tuned models in transformers: exported heads give the same scores, with the names of the labels."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lmjax import storage
from lmjax.commands.convert import check
from lmjax.data.objectives.arrange import Arrangement
from lmjax.data.tokenizers.bpe import train_bpe
from lmjax.models import encoder
from lmjax.storage import huggingface
from lmjax.storage.huggingface.families import FAMILIES
from lmjax.storage.huggingface.folder import settings_of
from lmjax.storage.huggingface.save import save
from lmjax.tasks.classification import Classification
from lmjax.tasks.spans import SpanExtraction
from lmjax.tasks.tagging import Tagging
from lmjax.testing import fake_batch, init_params, tiny_decoder
from lmjax.utils.errors import UserError
from tests.families import tiny_task
from tests.storage.huggingface_folders import SHAPES, write_model

pytestmark = [pytest.mark.torch, pytest.mark.filterwarnings("ignore")]
LABELS = ("no", "yes", "maybe")


def models():
  bert = tiny_task("BERT").model
  plain = encoder.Encoder(dataclasses.replace(bert.config, pooler=False))
  return {
    "BertForSequenceClassification": Classification(bert, labels=LABELS),
    "DistilBertForSequenceClassification": Classification(
      encoder.Encoder(dataclasses.replace(plain.config, token_types=0)), labels=LABELS
    ),
    "RobertaForSequenceClassification": Classification(
      encoder.Encoder(dataclasses.replace(plain.config, offset=2)), labels=LABELS
    ),
    "GPT2ForSequenceClassification": Classification(tiny_task("GPT").model, labels=LABELS),
    "BertForTokenClassification": Tagging(plain, labels=LABELS),
    "BertForQuestionAnswering": SpanExtraction(plain),
    "regression": Classification(bert),
  }


HEADS = {"ForSequenceClassification": Classification, "ForTokenClassification": Tagging,
         "ForQuestionAnswering": SpanExtraction}  # fmt: skip
FAST = (("electra", "ForSequenceClassification"), ("roberta", "ForSequenceClassification"),
        ("llama", "ForTokenClassification"), ("openai-gpt", "ForTokenClassification"))  # fmt: skip
PAIRS = [(kind, ending) for kind in SHAPES for ending in HEADS]


@pytest.mark.parametrize(
  "kind,ending", [pair if pair in FAST else pytest.param(*pair, marks=pytest.mark.slow) for pair in PAIRS]
)
def test_every_kind_has_the_classes_of_transformers_and_no_others(kind, ending, tmp_path):
  """As `configs/glue.py`, `ner.py` and `squad.py` train them; what transformers has not is refused by name."""
  import torch
  import transformers

  saved = write_model(tmp_path / "base", kind).model
  changes = {"scale_output": False} if kind in ("t5", "mt5") else {}
  if ending != "ForSequenceClassification" and saved.kind == "encoder":
    changes["pooler"] = False
  if ending == "ForTokenClassification" and kind in ("t5", "mt5"):
    changes["decoder_depth"] = 0
  model = type(saved)(dataclasses.replace(saved.config, **changes)) if changes else saved
  task = HEADS[ending](model, **({} if "Question" in ending else {"labels": LABELS}))
  end = 1 if kind in ("t5", "mt5") else 2  # where the last token of a row must be the end
  ids = np.random.default_rng(0).integers(3, 50, (2, 12))
  ids[:, -1] = end
  ones = jnp.ones(ids.shape, jnp.int32)
  batch = fake_batch(task, 2, 12)
  batch |= {"inputs": jnp.asarray(ids), "segments": ones, "positions": jnp.arange(12)[None] * ones}
  batch |= {"token_types": 0 * ones} if "token_types" in batch else {}
  rng = np.random.default_rng(1)
  params = jax.tree.map(lambda p: p + 0.05 * rng.standard_normal(p.shape).astype(np.float32), init_params(task, batch))
  if not hasattr(transformers, FAMILIES[kind].hf_prefix + ending) and kind != "phi3":  # that is saved as Llama
    with pytest.raises(UserError, match="has no Hugging Face equivalent"):
      save(tmp_path / "hf", model, params, None, settings_of(task))
    return
  save(tmp_path / "hf", model, params, None, settings_of(task))
  name = json.loads((tmp_path / "hf" / "config.json").read_text())["architectures"][0]
  theirs = getattr(transformers, name).from_pretrained(tmp_path / "hf").eval()
  assert "Question" in ending or theirs.config.id2label == dict(enumerate(LABELS))
  if model.kind == "decoder":
    theirs.config.pad_token_id = -1
  with torch.no_grad():
    outputs = theirs(input_ids=torch.tensor(ids))
  expected = torch.stack([outputs.start_logits, outputs.end_logits], -1) if "Question" in ending else outputs.logits
  np.testing.assert_allclose(jax.jit(task.forward)(params, batch).logits, expected.numpy(), atol=1e-5)


def test_a_head_on_scaled_vectors_is_not_written_as_if_they_were_not(tmp_path):
  model = tiny_task("T5").model
  scaled = type(model)(dataclasses.replace(model.config, scale_output=True))
  task = Classification(scaled, labels=LABELS)
  with pytest.raises(UserError, match="config.model.scale_output=False"):
    save(tmp_path / "hf", scaled, init_params(task, fake_batch(task, 2, 12)), None, settings_of(task))


@pytest.mark.parametrize("name", models())
def test_exported_heads_have_the_scores_of_transformers(name, tmp_path):
  import torch
  import transformers

  task = models()[name]
  ids = np.random.default_rng(0).integers(3, 50, (2, 12))
  ones = jnp.ones(ids.shape, jnp.int32)
  batch = fake_batch(task, 2, 12)
  batch |= {"inputs": jnp.asarray(ids), "segments": ones, "positions": jnp.arange(12)[None] * ones}
  if "token_types" in batch:
    batch["token_types"] = 0 * ones
  rng = np.random.default_rng(1)
  params = jax.tree.map(lambda p: p + 0.05 * rng.standard_normal(p.shape).astype(np.float32), init_params(task, batch))
  save(tmp_path / "hf", task.model, params, None, settings_of(task))
  written = json.loads((tmp_path / "hf" / "config.json").read_text())
  assert written["architectures"] == [name] if name != "regression" else written["problem_type"] == name
  model = getattr(transformers, written["architectures"][0]).from_pretrained(tmp_path / "hf").eval()
  if "Question" not in name and name != "regression":
    assert model.config.id2label == dict(enumerate(LABELS)) and model.config.label2id["maybe"] == 2
  model.config.pad_token_id = -1 if name.startswith("GPT2") else model.config.pad_token_id
  with torch.no_grad():
    outputs = model(input_ids=torch.tensor(ids))
  expected = torch.stack([outputs.start_logits, outputs.end_logits], -1) if "Question" in name else outputs.logits
  scores = jax.jit(task.forward)(params, batch).logits
  np.testing.assert_allclose(scores, expected.numpy(), atol=1e-5)
  opened = storage.open(tmp_path / "hf").task
  np.testing.assert_allclose(jax.jit(opened.forward)(params, batch).logits, scores, atol=1e-6)


CHOICE = [kind for kind in SHAPES if hasattr(FAMILIES[kind].config, "pooler") or kind in ("deberta-v2", "electra")]


@pytest.mark.parametrize("kind", CHOICE)
def test_multiple_choice_of_every_kind(kind, tmp_path):
  """Its tensors may have the names of those of another head: the class that config.json names decides."""
  import torch
  import transformers

  name = f"{FAMILIES[kind].hf_prefix}ForMultipleChoice"
  if not hasattr(transformers, name):
    pytest.skip(f"transformers has no {name}")
  torch.manual_seed(0)
  shape = getattr(transformers, name.replace("ForMultipleChoice", "Config"))(**SHAPES[kind])
  theirs = getattr(transformers, name)(shape).eval()
  with torch.no_grad():
    for p in theirs.parameters():
      p.add_(0.1 * torch.randn_like(p))
  theirs.save_pretrained(tmp_path / "hf")
  if kind == "modernbert":  # as its other classifiers
    with pytest.raises(UserError, match="does not use the tensors"):
      huggingface.load(tmp_path / "hf")
    return
  difference, largest = check(tmp_path / "hf")
  assert difference < 1e-5 * max(largest, 1) and largest > 1e-3
  loaded = huggingface.load(tmp_path / "hf")
  huggingface.save(tmp_path / "again", loaded.model, loaded.params, settings=loaded.settings)
  assert json.loads((tmp_path / "again" / "config.json").read_text())["architectures"] == [name]
  assert check(tmp_path / "again")[0] == pytest.approx(difference, abs=1e-6 * max(largest, 1))


def test_a_decoder_s_classifier_is_written_with_the_tokens_around_its_texts(tmp_path):
  """As transformers reads them, too: the head reads the last token, which ends a text."""
  import transformers

  tokenizer = train_bpe(["the good film and a bad one"] * 4, 280)
  task = Classification(tiny_decoder(vocabulary=tokenizer.size, length=32), labels=LABELS)
  arrangement = Arrangement("decoder", tokenizer, 32)
  params = init_params(task, fake_batch(task, 2, 32))
  save(tmp_path / "hf", task.model, params, tokenizer, settings_of(task), template=arrangement.template)
  theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "hf")
  assert theirs("the good film").input_ids == arrangement("the good film")["inputs"].tolist()
  assert theirs("the good film", "a bad one").input_ids == arrangement("the good film", "a bad one")["inputs"].tolist()
  assert theirs("the good film").input_ids[-1] == tokenizer.end
