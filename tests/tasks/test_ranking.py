"""Multiple choice: every choice is scored apart, by a model of any kind; a run learns and predicts."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lmjax.__main__ import main
from lmjax.compression.base import Identity
from lmjax.data.objectives.ranking import Ranking as Rows
from lmjax.data.sources.choices import MultipleChoice
from lmjax.data.tokenizers.registry import TokenizerConfig
from lmjax.data.tokenizers.words import Words
from lmjax.optim import Optimizer
from lmjax.parallel.mesh import MeshShape
from lmjax.parallel.sharding import Layout
from lmjax.tasks.classification import Classification
from lmjax.tasks.ranking import Ranking
from lmjax.testing import init_params, init_state
from lmjax.train import make_step
from tests.families import tiny_task

KINDS = ("GPT", "BERT", *(pytest.param(name, marks=pytest.mark.long) for name in ("LSTM", "ELMo", "T5")))
WORDS = Words(("<S>", "</S>", "<unk>", *map(chr, range(97, 123))), "spaces")
EXAMPLES = [("a b", ("c d e", "f", "g h"), "1"), ("c", ("a", "b b b b"), "0"), ("e d", ("a b c", "d", "a"), "2")]


def task_of(family, choices=3, **changes):
  labels = tuple(map(str, range(choices)))
  return Ranking(tiny_task(family).model, dropout=0.0, characters=8, labels=labels, **changes)


def batch_of(task, examples, length=36):
  source = [MultipleChoice(*example) for example in examples]
  data = Rows(source, source, length, TokenizerConfig("bytes"), labels=task.labels, characters=8).for_model(task.model)
  (batch,) = data.validate(WORDS, len(source))
  return {key: jnp.asarray(batch[key]) for key in task.spec(1, 1)}


def scores_of(task, params, batch):
  return np.asarray(jax.jit(lambda params, batch: task.forward(params, batch).logits)(params, batch))


def parameters(task, batch):
  rng = np.random.default_rng(0)
  return jax.tree.map(lambda p: p + 0.1 * rng.standard_normal(p.shape).astype(np.float32), init_params(task, batch))


@pytest.mark.parametrize("family", KINDS)
def test_choices_are_scored_apart(family):
  """Neither the order of choices, nor the others, nor padding, nor the number of choices changes a score."""
  task = task_of(family)
  batch = batch_of(task, EXAMPLES)
  params = parameters(task, batch)
  scores = scores_of(task, params, batch)
  assert scores.shape == (3, 3) and np.std(scores[0]) > 1e-3 and scores[1, 2] == -1e9
  turned = [(text, choices[::-1], str(len(choices) - 1 - int(label))) for text, choices, label in EXAMPLES]
  again = scores_of(task, params, batch_of(task, turned, 48))
  for i, (_, choices, _) in enumerate(EXAMPLES):
    np.testing.assert_allclose(again[i, : len(choices)][::-1], scores[i, : len(choices)], rtol=2e-4, atol=2e-5)
  more = task_of(family, 4)
  np.testing.assert_allclose(scores_of(more, params, batch_of(more, EXAMPLES, 48))[:, :3], scores, rtol=2e-4, atol=2e-5)
  one = Classification(task.model, dropout=0.0, characters=8)  # a number for the pair of a context and a choice
  numbers = np.asarray(jax.jit(one.forward)(params, task.apart(batch)).logits).reshape(3, 3)
  np.testing.assert_allclose(numbers[scores > -1e8], scores[scores > -1e8], rtol=2e-4, atol=2e-5)


@pytest.mark.parametrize("family", KINDS)
def test_the_loss_is_a_softmax_over_the_choices_that_exist(family):
  task = task_of(family)
  batch = batch_of(task, EXAMPLES)
  params = parameters(task, batch)
  scores, labels = scores_of(task, params, batch).astype(np.float64), [1, 0, 2]
  nll = np.log(np.exp(scores).sum(1)) - scores[np.arange(3), labels]
  loss = jax.jit(lambda params: task.loss(params, {}, {}, batch)[0]["loss"])
  np.testing.assert_allclose(loss(params).total, nll.sum(), rtol=1e-4)
  empty = {key: jnp.concatenate([value, jnp.zeros_like(value[:1])]) for key, value in batch.items()}
  gradient = jax.jit(jax.grad(lambda params: task.loss(params, {}, {}, empty)[0]["loss"].total))(params)
  assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradient))


def test_auxiliary_language_modelling_has_the_tokens_of_all_choices():
  task = task_of("GPT", lm_weight=0.5)
  batch = batch_of(task, EXAMPLES)
  params = parameters(task, batch)
  terms = jax.jit(lambda params: task.loss(params, {}, {}, batch)[0])(params)
  alone = tiny_task("GPT")
  apart = {key: batch[key].reshape(9, 12) for key in ("inputs", "positions", "segments", "targets", "weights")}
  expected = jax.jit(lambda params: alone.loss(params | {"heads": {}}, {}, {}, apart)[0]["loss"])(params)
  np.testing.assert_allclose(terms["lm"].total, expected.total, rtol=1e-4)
  assert terms["lm"].count == sum(len(f"{text} {c}".split()) + 2 for text, own, _ in EXAMPLES for c in own)


def test_microbatches_add_up():
  task = task_of("BERT")
  batch = batch_of(task, [*EXAMPLES, EXAMPLES[0]])
  params = parameters(task, batch)
  steps = [jax.jit(make_step(task, Optimizer(clip=0.0).build(9), Identity(), parts)) for parts in (1, 2)]
  layout = Layout.build(MeshShape().build(jax.devices()[:1]), "ddp")
  state = init_state(task, Optimizer(clip=0.0).build(9), Identity(), layout, 4, 36, 0).replace(params=params)
  (_, whole), (_, parts) = (step(state, batch, jax.random.key(0)) for step in steps)
  for key in ("loss", "gradient_norm"):
    value = [m[key].value() if hasattr(m[key], "value") and callable(m[key].value) else m[key] for m in (whole, parts)]
    np.testing.assert_allclose(*value, rtol=1e-4)


@pytest.mark.long
def test_a_run_learns_and_predicts(tmp_path, capsys):
  rng, letters = np.random.default_rng(0), [chr(i) for i in range(97, 107)]
  lines = []
  for _ in range(300):
    right, wrong = rng.choice(letters, 2, replace=False)
    label = int(rng.integers(2))
    choices = [f"{wrong} ."] * 2
    choices[label] = f"{right} ."
    lines.append({"ctx": right, "endings": choices, "label": label})
  (tmp_path / "x.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
  source = dict(kind="lmjax.data.sources.labelled_records:JsonRecords", files=str(tmp_path / "x.jsonl"), text="ctx",
                choices="endings")  # fmt: skip
  config = dict(
    steps=300, batch=16,
    data=dict(kind="lmjax.data.objectives.ranking:Ranking", length=20, tokenizer=dict(algorithm="wordpiece", size=60),
              source=source | dict(split=":80%"), validation=source | dict(split="80%:")),
    model=dict(kind="lmjax.models.encoder:Encoder", width=32, depth=1, heads=4, head_size=8, mlp=64, length=20),
    task=dict(kind="lmjax.tasks.ranking:Ranking"), optim=dict(peak_lr=5e-3, weight_decay=0.0),
    log=dict(every=50, tensorboard=False),
    evals=dict(dev=dict(kind="lmjax.evals.task_metrics:TaskMetrics", resamples=0)),
  )  # fmt: skip
  (tmp_path / "config.json").write_text(json.dumps(config))
  run = tmp_path / "run"
  assert main(["train", "--config", str(tmp_path / "config.json"), "--workdir", str(run)]) == 0
  summary = json.loads((run / "summary.json").read_text())
  assert summary["dev_accuracy"] > 0.9 > 0.7 > summary["dev_majority_accuracy"]
  assert json.loads((run / "config.json").read_text())["data"]["labels"] == ["0", "1"]
  (tmp_path / "in.txt").write_text("c\ta .\tc .\tf .\n")
  (tmp_path / "in.jsonl").write_text('{"text": "c", "choices": ["a .", "c .", "f ."]}\n')
  found = []
  for name in ("in.txt", "in.jsonl"):
    capsys.readouterr()
    assert main(["predict", "--workdir", str(run), "--input", str(tmp_path / name)]) == 0
    found.append(json.loads(capsys.readouterr().out))
  assert found[0]["label"] == "1" and found[0]["choice"] == "c ." and len(found[0]["probabilities"]) == 3
  assert found[0]["probabilities"] == found[1]["probabilities"]
  assert main(["convert", "--input", str(run), "--output", str(tmp_path / "hf")]) == 0
  assert json.loads((tmp_path / "hf" / "config.json").read_text())["architectures"] == ["BertForMultipleChoice"]
  capsys.readouterr()
  assert main(["predict", "--workdir", str(tmp_path / "hf"), "--input", str(tmp_path / "in.txt")]) == 0
  np.testing.assert_allclose(json.loads(capsys.readouterr().out)["probabilities"], found[0]["probabilities"], rtol=1e-4)
  (tmp_path / "in.txt").write_text("c\n")
  assert main(["predict", "--workdir", str(run), "--input", str(tmp_path / "in.txt")]) == 2
  assert "needs its choices" in capsys.readouterr().err
