"""Trained taggers and span models learn what a few seconds suffice for, and `predict` gives it."""

import json

import numpy as np
import pytest

from lmjax.__main__ import main

ENCODER = dict(kind="lmjax.models.encoder:Encoder", width=32, depth=2, heads=4, head_size=8, mlp=64, pooler=False)
ELMO = dict(kind="lmjax.models.elmo:ELMo", width=16, cells=32, depth=1, embedding=8, filters=[[1, 16], [2, 16]],
            highways=1, dropout=0.0)  # fmt: skip
WORDS = dict(kind="lmjax.data.tokenizers.words:WordTokenizerConfig", size=60, split_by="spaces")
OPTIM = dict(peak_lr=5e-3, weight_decay=0.0)


def train(folder, **sections):
  values = dict(batch=16, optim=OPTIM, log=dict(every=100, tensorboard=False), start={}) | sections
  (folder / "config.json").write_text(json.dumps(values))
  assert main(["train", "--config", str(folder / "config.json"), "--workdir", str(folder / "run")]) == 0
  return json.loads((folder / "run" / "summary.json").read_text())


def predict(folder, lines, capsys):
  (folder / "in.txt").write_text("".join(f"{line}\n" for line in lines))
  capsys.readouterr()
  assert main(["predict", "--workdir", str(folder / "run"), "--input", str(folder / "in.txt")]) == 0
  return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


NAMES = ("ann", "bob", "cy", "dee")


def sentences(rng, number):
  """Names are places where the first word is "in", and persons where it is "so"."""
  for _ in range(number):
    place = rng.random() < 0.5
    words, tags = ["in" if place else "so"], ["O"]
    for _ in range(rng.integers(1, 4)):
      words += [str(rng.choice(NAMES)), "x"]
      tags += ["B-LOC" if place else "B-PER", "O"]
    yield "".join(f"{word}\t{tag}\n" for word, tag in zip(words, tags, strict=True)) + "\n"


@pytest.mark.parametrize(
  "model,task",
  [
    (ENCODER, dict(kind="lmjax.tasks.tagging:Tagging")),
    pytest.param(ELMO, dict(kind="lmjax.tasks.tagging:Tagging"), marks=pytest.mark.long),
    pytest.param(
      ELMO,
      dict(kind="lmjax.tasks.bilstm_tagging:BiLSTMTagging", cells=16, mix_penalty=0.001, dropout=0.0),
      marks=pytest.mark.long,
    ),
  ],
  ids=["BERT", "mix", "mix, BiLSTM"],
)
def test_taggers_learn(model, task, tmp_path, capsys):
  rng, is_elmo = np.random.default_rng(0), model is ELMO
  for name, number in (("train", 160), ("dev", 40)):
    (tmp_path / name).write_text("".join(sentences(rng, number)))
  source = dict(kind="lmjax.data.sources.conll:Conll", files=str(tmp_path / "train"))
  optim = dict(frozen=["^model/"] if "bilstm" in task["kind"] else [], peak_lr=1e-2 if is_elmo else 5e-3)
  summary = train(
    tmp_path, steps=320 if is_elmo else 100, model=model, task=task, optim=OPTIM | optim,
    data=dict(kind="lmjax.data.objectives.tagging:Tagging", length=16, source=source, characters=8,
              validation=source | dict(files=str(tmp_path / "dev")),
              tokenizer=WORDS if is_elmo else dict(algorithm="wordpiece", size=60)),
    evals=dict(dev=dict(kind="lmjax.evals.entity_f1:EntityF1", resamples=20)),
  )  # fmt: skip
  assert summary["dev_f1"] > 0.9 and summary["dev_f1_low"] <= summary["dev_f1"] <= summary["dev_f1_high"]
  first, second = predict(tmp_path, ["so ann x bob x cy x", "in bob x"], capsys)
  assert first["tags"] == ["O", "B-PER"] * 3 + ["O"] and len(first["words"]) == 7
  assert second["tags"] == ["O", "B-LOC", "O"] and min(second["probabilities"]) > 0.4


@pytest.mark.long
def test_span_models_learn(tmp_path, capsys):
  """The answer is the word in the paragraph that the question names, in whichever window it is."""
  rng, letters = np.random.default_rng(0), [chr(i) * 3 for i in range(97, 107)]

  def article(number):
    paragraphs = []
    for i in range(number):
      words = list(rng.permutation(letters)[:8])
      context, answer = " ".join(words), str(rng.choice(words))
      answers = [{"text": answer, "answer_start": context.index(answer)}]
      paragraphs.append({"context": context, "qas": [{"id": f"{number}-{i}", "question": answer, "answers": answers}]})
    return {"data": [{"title": "a", "paragraphs": paragraphs}]}

  for name, number in (("train.json", 400), ("dev.json", 40)):
    (tmp_path / name).write_text(json.dumps(article(number)))
  source = dict(kind="lmjax.data.sources.squad:Squad", files=str(tmp_path / "train.json"))
  summary = train(
    tmp_path, steps=300, model=ENCODER, task=dict(kind="lmjax.tasks.spans:SpanExtraction", dropout=0.0),
    data=dict(kind="lmjax.data.objectives.spans:Spans", length=13, overlap=2, question_length=4, answerable=True,
              source=source, validation=source | dict(files=str(tmp_path / "dev.json")),
              tokenizer=dict(algorithm="wordpiece", size=60)),
    evals=dict(dev=dict(kind="lmjax.evals.answers:AnswerMetrics", resamples=20)),
  )  # fmt: skip
  assert summary["dev_exact"] > 0.8 and summary["dev_f1"] >= summary["dev_exact"]
  context = "aaa bbb ccc ddd eee fff ggg hhh"
  outputs = predict(tmp_path, [f"{word}\t{context}" for word in context.split()], capsys)
  right = [output["answer"] == word for output, word in zip(outputs, context.split(), strict=True)]
  assert sum(right) >= 6
  assert all(context[o["start"] :].startswith(o["answer"]) for o in outputs)
