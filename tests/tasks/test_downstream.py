"""Downstream tasks: what holds for classification by a model of any kind, and runs of it from start to export."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lmjax import sections, storage
from lmjax.__main__ import main
from lmjax.checkpoint import CheckpointConfig
from lmjax.data.objectives.arrange import Arrangement, pad
from lmjax.data.tokenizers.words import Words
from lmjax.models.heads import scalar_mix
from lmjax.storage import huggingface
from lmjax.storage.section import model_section
from lmjax.tasks.base import weighted_sum
from lmjax.tasks.classification import Classification
from lmjax.testing import fake_batch, init_params
from lmjax.utils import pytree
from lmjax.utils.errors import UserError
from tests.families import FAMILIES, tiny_task
from tests.storage.huggingface_folders import write_model

LABELS = ("no", "yes", "maybe")
KINDS = ("GPT", "BERT", *(pytest.param(name, marks=pytest.mark.long) for name in ("Llama", "LSTM", "ELMo", "T5")))


def task_of(family, labels=LABELS, **changes):
  return Classification(tiny_task(family).model, dropout=0.0, characters=8, labels=labels, **changes)


def batch_of(task, texts, length=16, symmetric=False):
  """A batch of strings of letters, or pairs of them, without labels; ids are below 50."""
  words = Words(("<S>", "</S>", "<unk>", *map(chr, range(97, 123))), "spaces")
  arrange = Arrangement(task.model.kind, words, length, symmetric=symmetric, characters=8)
  made = [pad(arrange(*text), length) for text in texts]
  batch = {key: jnp.asarray(np.stack([row[key] for row in made])) for key in made[0]}
  return batch | {"row_weights": jnp.ones(len(texts)), "labels": jnp.arange(len(texts)) % 2}


def logits(task, params, batch):
  return np.asarray(jax.jit(lambda params, batch: task.forward(params, batch).logits)(params, batch))


def terms_of(task, params, batch):
  return jax.jit(lambda params, batch: task.loss(params, {}, {}, batch)[0])(params, batch)


def parameters(task, batch):
  rng = np.random.default_rng(0)
  return jax.tree.map(lambda p: p + 0.1 * rng.standard_normal(p.shape).astype(np.float32), init_params(task, batch))


@pytest.mark.parametrize("family", KINDS)
def test_scores_depend_on_neither_padding_nor_the_rest_of_the_batch(family):
  task = task_of(family)
  texts = [("a b c", "d e"), ("c", "b b b b"), ("e d c b a", "a")]
  long, short = batch_of(task, texts, 16), batch_of(task, texts[:2], 12)
  params = parameters(task, long)
  scores = logits(task, params, long)
  assert scores.shape == (3, 3) and scores.dtype == np.float32 and np.std(scores, axis=0).min() > 1e-4
  np.testing.assert_allclose(logits(task, params, short), scores[:2], rtol=2e-4, atol=2e-5)
  changed = logits(task, params, batch_of(task, [("a b c", "d f"), *texts[1:]], 16))
  assert np.abs(changed - scores)[0].max() > 1e-4 and np.abs(changed - scores)[1:].max() < 1e-5


@pytest.mark.parametrize("family", KINDS)
def test_rows_of_padding_and_class_weights(family):
  task = task_of(family)
  batch = fake_batch(task, 4, 16)
  params = parameters(task, batch)
  terms = terms_of(task, params, batch)
  scores = logits(task, params, batch).astype(np.float64)
  nll = np.log(np.exp(scores).sum(1)) - scores[np.arange(4), np.asarray(batch["labels"])]
  np.testing.assert_allclose(terms["loss"].total, nll.sum(), rtol=1e-4)
  weighted = batch | {"row_weights": jnp.array([1.0, 0.0, 2.5, 0.0])}
  loss = weighted_sum(task, terms_of(task, params, weighted), task.counts(weighted))
  np.testing.assert_allclose(loss, (nll[0] + 2.5 * nll[2]) / 3.5, rtol=1e-4)
  gradient = jax.jit(jax.grad(lambda p: task.loss(p, {}, {}, weighted)[0]["loss"].total))(params)
  trained = {name for name, g in pytree.named_leaves(gradient).items() if np.abs(g).max() > 0}
  heads = {name for name in pytree.named_leaves(gradient) if name.startswith("heads/")}
  assert heads <= trained and any("embed" in name or "words" in name for name in trained)


@pytest.mark.parametrize("family", KINDS)
def test_numbers_are_regressed(family):
  task = task_of(family, labels=())
  batch = fake_batch(task, 4, 16) | {"values": jnp.array([0.5, -1.0, 2.0, 0.0])}
  params = parameters(task, batch)
  scores = logits(task, params, batch)
  assert scores.shape == (4, 1)
  terms = terms_of(task, params, batch)
  np.testing.assert_allclose(terms["loss"].value(), np.mean((scores[:, 0] - batch["values"]) ** 2), rtol=1e-4)


@pytest.mark.parametrize("family", ["GPT", "LSTM"])
def test_decoders_read_symmetric_pairs_in_both_orders(family):
  task = task_of(family)
  batch = batch_of(task, [("a b", "c d e"), ("c d e", "a b")], 24, symmetric=True)
  params = parameters(task, batch)
  one, other = logits(task, params, batch)
  np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5)
  single = [batch_of(task, [pair], 24) for pair in (("a b", "c d e"), ("c d e", "a b"))]
  apart = [logits(task, params, b)[0] for b in single]
  assert np.abs(apart[0] - apart[1]).max() > 1e-3
  np.testing.assert_allclose(one, apart[0] + apart[1], rtol=1e-3, atol=1e-4)  # the head is linear, without a bias


@pytest.mark.parametrize("family", ["GPT", "LSTM"])
def test_auxiliary_language_modelling_is_that_of_the_model(family):
  task, alone = task_of(family, lm_weight=0.5), FAMILIES[family]()
  batch = batch_of(task, [("a b c", "d"), ("b", "c d e f")])
  params = parameters(task, batch)
  terms = terms_of(task, params, batch)
  expected = terms_of(alone, params | {"heads": {}}, batch)
  np.testing.assert_allclose(terms["lm"].value(), expected["loss"].value(), rtol=1e-4)
  loss = weighted_sum(task, terms, task.counts(batch))
  np.testing.assert_allclose(loss, terms["loss"].value() + 0.5 * terms["lm"].value(), rtol=1e-5)
  with pytest.raises(ValueError, match="of decoders alone"):
    task_of("BERT", lm_weight=0.5)


def test_elmo_s_layers_are_mixed():
  task = task_of("ELMo")
  batch = fake_batch(task, 2, 8)
  params = parameters(task, batch)
  mix = params["heads"]["mix"]
  layers = jax.jit(lambda params: task.hidden(params, batch, taps=("hidden",)).taps["hidden"])(params)
  expected = scalar_mix(layers, mix["weights"], mix["gamma"])
  np.testing.assert_allclose(jax.jit(task.forward)(params, batch).hidden, expected, rtol=1e-4, atol=1e-5)


def test_dropout_of_the_head_is_for_training_alone():
  task = dataclasses.replace(task_of("BERT"), dropout=0.5)
  batch = fake_batch(task)
  params = parameters(task, batch)
  scores = [
    np.asarray(jax.jit(task.forward)(params, batch, rng=rng).logits)
    for rng in (None, None, *jax.random.split(jax.random.key(0)))
  ]
  assert np.array_equal(scores[0], scores[1]) and not np.array_equal(scores[0], scores[2])
  assert not np.array_equal(scores[2], scores[3])


@pytest.fixture
def bert(tmp_path):
  """A Hugging Face folder of a tiny BERT with 40 positions, more words than its tokenizer has, and that tokenizer."""
  words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "good", "bad", "film", "##s", "the", "a", "."]
  model = type(tiny_task("BERT").model)(dataclasses.replace(tiny_task("BERT").model.config, length=40))
  params = {"model": init_params(model, {"inputs": jnp.zeros((1, 4), jnp.int32)})["params"], "heads": {}}
  huggingface.save(tmp_path / "bert", model, params)
  (tmp_path / "bert" / "vocab.txt").write_text("\n".join(words) + "\n")
  return tmp_path / "bert"


TEXTS = [("the good film .", 1), ("a bad film .", 0), ("good films", 1), ("the bad", 0)]


def settings(bert, tmp_path, **data):
  """The arguments of a short run from a folder, at a length shorter than its table of positions."""
  lines = "".join(f"{text}\t{label}\n" for text, label in TEXTS * 8)
  (tmp_path / "train.tsv").write_text("sentence\tlabel\n" + lines)
  source = dict(
    kind="lmjax.data.sources.labelled:Table", files=str(tmp_path / "train.tsv"), names={"0": "bad", "1": "good"}
  )
  values = dict(
    steps=24, batch=8, start=dict(path=str(bert)), model=model_section(bert),
    data=dict(kind="lmjax.data.objectives.labelled:Labelled", length=12, tokenizer=dict(path=str(bert)), source=source,
              validation=source) | data,
    task=dict(kind="lmjax.tasks.classification:Classification"),
    optim=dict(peak_lr=1e-2, weight_decay=0.0), log=dict(every=1, tensorboard=False),
    evals=dict(every=12, dev=dict(kind="lmjax.evals.task_metrics:TaskMetrics", resamples=20)),
    checkpoint=dict(every=12, metric="-dev_accuracy", keep=1),
  )  # fmt: skip
  (tmp_path / "config.json").write_text(json.dumps(values))
  return ["--config", str(tmp_path / "config.json"), "--workdir", str(tmp_path / "run")]


def test_a_run_from_a_longer_model_learns_predicts_and_keeps_its_labels(bert, tmp_path, capsys):
  assert main(["train", *settings(bert, tmp_path)]) == 0
  run = tmp_path / "run"
  summary = json.loads((run / "summary.json").read_text())
  assert summary["dev_accuracy"] == summary["dev_accuracy_low"] == 1.0 and summary["dev_majority_accuracy"] == 0.5
  saved = json.loads((run / "config.json").read_text())
  assert saved["data"]["labels"] == ["bad", "good"] and saved["model"]["length"] == 40
  (tmp_path / "train.tsv").unlink()  # a trained model needs no data
  assert storage.open(run).parameters()["model/positions/table"].shape[0] == 40
  (tmp_path / "in.txt").write_text("the good film .\na bad film .\n")
  capsys.readouterr()
  assert main(["predict", "--workdir", str(run), "--best", "--input", str(tmp_path / "in.txt")]) == 0
  first, second = map(json.loads, capsys.readouterr().out.splitlines())
  assert (first["text"], first["label"], second["label"]) == ("the good film .", "good", "bad")
  assert first["probability"] == max(first["probabilities"].values()) > 0.5
  assert abs(sum(second["probabilities"].values()) - 1) < 1e-5
  assert main(["convert", "--input", str(run), "--best", "--output", str(tmp_path / "hf")]) == 0
  written = json.loads((tmp_path / "hf" / "config.json").read_text())
  assert written["architectures"] == ["BertForSequenceClassification"]
  assert written["id2label"] == {"0": "bad", "1": "good"} and written["label2id"] == {"bad": 0, "good": 1}
  output = tmp_path / "out.jsonl"
  command = ["predict", "--workdir", str(tmp_path / "hf"), "--input", str(tmp_path / "in.txt"), "--output", str(output)]
  assert main(command) == 0
  for before, after in zip((first, second), map(json.loads, output.read_text().splitlines()), strict=True):
    assert before["label"] == after["label"] and abs(before["probability"] - after["probability"]) < 1e-5


def test_the_best_checkpoint_is_that_of_the_task_s_metric():
  settings_ = CheckpointConfig(metric="-dev_f1")
  assert settings_.loss({"dev_f1": 0.5, "validation_loss": 3.0}) == -0.5 and settings_.loss({}) is None
  assert CheckpointConfig().loss({"dev_f1": 0.5, "validation_loss": 3.0}) == 3.0


def test_a_model_smaller_than_the_data_is_refused(bert, tmp_path, capsys):
  assert main(["train", *settings(bert, tmp_path, length=41)]) == 2
  assert "config.model.length is 40, and the data and its tokenizer need 41" in capsys.readouterr().err
  with pytest.raises(UserError, match="does not exist"):
    model_section(tmp_path / "nowhere")
  section = model_section(bert, dropout=0.25, no_such_field=1)
  assert section["dropout"] == 0.25 and "no_such_field" not in section
  assert sections.build(section, "model").config.length == 40


@pytest.mark.parametrize(("kind", "dropout"), [("gpt2", 0.1), ("llama", 0.0), ("t5", 0.1)])
def test_a_decoder_that_was_trained_without_dropout_stays_without(tmp_path, kind, dropout):
  write_model(tmp_path / kind, kind)
  assert model_section(tmp_path / kind, dropout=0.1)["dropout"] == dropout
