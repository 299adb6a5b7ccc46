"""Evaluation suites: task files, items, rows, scores and files of results."""

import dataclasses
import itertools
import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lmjax.__main__ import main
from lmjax.data.tokenizers.base import Bytes
from lmjax.evals.bootstrap import interval, limits
from lmjax.evals.suites import beliefs, items, metrics, page, task_files
from lmjax.evals.suites.encode import Encoder, Row
from lmjax.evals.suites.likelihood import Likelihood
from lmjax.inference import suite as suites
from lmjax.parallel.mesh import MeshShape
from lmjax.parallel.sharding import Layout
from lmjax.storage.base import LoadedModel
from lmjax.tasks.causal_lm import CausalLM
from lmjax.tasks.encode import Encode
from lmjax.testing import fake_batch, init_params, tiny_decoder
from lmjax.utils.errors import UserError
from tests.conftest import DATA
from tests.families import tiny_task

TASK = {
  "task": "colours", "dataset_path": "json", "dataset_kwargs": {"data_files": {"test": "colours.jsonl"}},
  "test_split": "test", "output_type": "multiple_choice", "doc_to_text": "Q: {{question}}\nA:", "doc_to_target": "gold",
  "doc_to_choice": "choices", "metric_list": [{"metric": "acc"}, {"metric": "acc_norm"}],
}  # fmt: skip
DOCS = [
  {"question": f"what is {i} {'and more ' * (i % 5)}?", "choices": ["red", "dark green", "blue, " * (1 + i % 2) + "b"],
   "gold": i % 3} for i in range(12)
]  # fmt: skip


def write(folder, docs=DOCS, **changes):
  """Writes a task and its data, and returns its YAML file (JSON is YAML)."""
  (folder / "colours.jsonl").write_text("".join(json.dumps(doc) + "\n" for doc in docs))
  (folder / "colours.yaml").write_text(json.dumps(TASK | changes))
  return folder / "colours.yaml"


@pytest.fixture(scope="module")
def loaded():
  """A random decoder on bytes."""
  task = CausalLM(tiny_decoder(vocabulary=257, length=128))
  batch = {key: np.ones(leaf.shape, leaf.dtype) for key, leaf in task.spec(1, 8).items()}
  layout = Layout.build(MeshShape().build(jax.devices()[:1]), "ddp")
  return LoadedModel(task, Bytes(), 128, layout, init_params(task, batch), 0, {})


def suite(file, folder, **options):
  return suites.Suite(suites.choose(str(file)), folder, **options)


def by_hand(loaded, context, continuation):
  """Returns log p(continuation | context), a token at a time, without padding."""
  ids = [256, *(context + continuation).encode()]
  logits = loaded.task.forward(loaded.params, {"inputs": jnp.asarray([ids[:-1]])}).logits[0]
  log_probs = np.asarray(jax.nn.log_softmax(logits))
  count = len(continuation.encode())
  return sum(log_probs[i, ids[i + 1]] for i in range(len(ids) - 1 - count, len(ids) - 1))


def test_scores_are_those_of_single_rows(loaded, tmp_path):
  """Sorting, padding and batches change nothing."""
  file = write(tmp_path)
  results = suites.evaluate(loaded, suite(file, tmp_path / "out"))
  records = [json.loads(line) for line in (tmp_path / "out" / "colours.jsonl").read_text().splitlines()[1:]]
  made = {item.number: item for item in items.make_items(suites.choose(str(file))[0], None)}
  assert len(records) == len(DOCS)
  for record in records[:4]:
    item = made[record["item"]]
    wanted = [by_hand(loaded, *pair) for pair in zip(item.contexts, item.continuations, strict=True)]
    np.testing.assert_allclose(record["log_likelihoods"], wanted, rtol=1e-5)
    assert record["acc"] == float(np.argmax(wanted) in item.target)
    assert record["acc_norm"] == float(np.argmax([w / len(c) for w, c in zip(wanted, item.choices, strict=True)])
                                       in item.target)  # fmt: skip
  score = results["tasks"]["colours"]["metrics"]["acc"]
  assert score["value"] == np.mean([record["acc"] for record in records])
  assert score["low"] <= score["value"] <= score["high"] and score["low"] < score["high"]


def test_results_are_kept_until_what_they_depend_on_changes(loaded, tmp_path, monkeypatch):
  """An interrupted evaluation continues; another model, template or number of shots starts anew."""
  file, scored = write(tmp_path), []
  run = Likelihood.__call__

  def counted(self, params, rows):
    scored.append(len(rows))
    return run(self, params, rows)

  monkeypatch.setattr(Likelihood, "__call__", counted)
  wanted = suites.evaluate(loaded, suite(file, tmp_path / "out"))
  lines = (tmp_path / "out" / "colours.jsonl").read_text().splitlines(keepends=True)
  (tmp_path / "out" / "colours.jsonl").write_text("".join(lines[:6]) + lines[6][:9])  # a kill while writing
  assert suites.evaluate(loaded, suite(file, tmp_path / "out")) == wanted
  assert suites.evaluate(loaded, suite(file, tmp_path / "out")) == wanted
  assert scored == [3 * 12, 3 * 7, 0]
  changed = [*DOCS[:10], DOCS[10] | {"gold": 0}, DOCS[11] | {"question": "another"}]
  suites.evaluate(loaded, suite(write(tmp_path, changed), tmp_path / "out"))
  assert scored.pop() == 3 * 2, "the items whose data changed, and no other"
  write(tmp_path)
  suites.evaluate(loaded, suite(file, tmp_path / "out", shots=1))
  suites.evaluate(loaded, suite(write(tmp_path, doc_to_text="{{question}}"), tmp_path / "out"))
  other = jax.tree.map(lambda x: x * 1.001, loaded.params)
  other = LoadedModel(loaded.task, loaded.tokenizer, 128, loaded.layout, other, 0, {})
  suites.evaluate(other, suite(write(tmp_path, doc_to_text="{{question}}"), tmp_path / "out"))
  assert scored[3:] == [36, 36, 36]


@pytest.mark.parametrize("stride", [0, 3, 50])
def test_windows_predict_each_token_once(stride):
  text = "once upon a time " * 9
  rows = Encoder(Bytes(), "decoder", 32).rolling(text, stride)
  assert [t for row in rows for t in row.targets] == list(text.encode())
  assert all(len(row.inputs) <= 32 for row in rows) and rows[0].inputs[0] == 256
  ids = [256, *text.encode()]
  done = 1
  for row in rows:
    end = done + len(row.targets)
    assert list(row.inputs) == ids[max(0, end - 33) : end - 1]
    done = end


def test_white_space_of_a_context_belongs_to_the_continuation():
  (row,) = Encoder(Bytes(), "decoder", 32).pair("ab  ", "c")
  assert row == Row((256, *b"ab "[:3], 32)[:5], tuple(b"  c"))
  (row,) = Encoder(Bytes(), "decoder", 4).pair("abcdefgh", "ij")  # a context that is too long loses its beginning
  assert row == Row(tuple(b"fghi"), tuple(b"ij"))
  with pytest.raises(UserError, match="takes at most 4"):
    Encoder(Bytes(), "decoder", 4).pair("a", "bcdefgh")


@pytest.mark.parametrize("changes, message", [
  ({"doc_to_txt": "x"}, "did you mean 'doc_to_text'"),
  ({"dataset_path": "allenai/ai2_arc"}, "only local files"),
  ({"filter_list": []}, "'filter_list' is not supported"),
  ({"process_docs": "x"}, "'process_docs' is not supported"),
  ({"metric_list": [{"metric": "acc_nom"}]}, "did you mean 'acc_norm'"),
  ({"output_type": "choice"}, "output_type is one of"),
  ({"doc_to_choice": None}, "needs doc_to_choice"),
  ({"doc_to_text": "{{questin}}"}, "undefined"),
  ({"doc_to_text": "{{question.__class__.__mro__}}"}, "unsafe"),
  ({"doc_to_target": "7"}, "not one of its choices"),
  ({"doc_to_choice": "{{question}}"}, "makes no list"),
])  # fmt: skip
def test_what_cannot_be_read_is_refused(tmp_path, changes, message):
  with pytest.raises(UserError, match=message):
    items.make_items(suites.choose(str(write(tmp_path, **changes)))[0], None)


def test_python_code_is_refused(tmp_path):
  file = write(tmp_path)
  file.write_text("task: t\ndoc_to_text: !function preprocess.text\n")
  with pytest.raises(UserError, match="!function preprocess.text"):
    task_files.load(str(file))
  file.write_text("task: t\ndoc_to_text: !!python/object/apply:os.system [ls]\n")
  with pytest.raises(UserError, match="YAML"):
    task_files.load(str(file))


def test_groups_and_includes(tmp_path):
  file = write(tmp_path)
  (tmp_path / "more.yaml").write_text("include: colours.yaml\ntask: more\n")
  (tmp_path / "all.yaml").write_text("group: all\ntask: [colours, more]\naggregate_metric_list: [{metric: acc}]\n")
  tasks = task_files.load(str(tmp_path / "all.yaml"))
  assert [task.task for task in tasks] == ["colours", "more"] and {task.groups for task in tasks} == {("all",)}
  assert tasks[0].hash() != tasks[1].hash() and tasks[0].hash() == task_files.load(str(file))[0].hash()
  (tmp_path / "all.yaml").write_text("group: all\ntask: [all]\n")
  with pytest.raises(UserError, match="contain each other"):
    task_files.load(str(tmp_path / "all.yaml"))


@pytest.mark.skipif(not DATA.exists(), reason="real data is absent")
@pytest.mark.parametrize(
  "task",
  [task for name in ("core", "gsm8k", "winogender") for task in task_files.load(name)],
  ids=lambda task: task.task,
)
def test_packaged_tasks_fit_their_data(task):
  made = items.make_items(task, str(DATA), limit=20)
  assert len(made) == min(len(items.read_docs(task, task.split(), str(DATA))), 20)
  assert all(item.target and (item.contexts[0] or "blimp" in task.task) for item in made)


def test_exams_are_reported_by_subject_with_their_calibration(loaded, tmp_path):
  (tmp_path / "exam").mkdir()
  docs = [
    {"question": f"{i}?", "choices": list("wxyz"), "answer": i % 4, "subject": "art" if i % 2 else "law & order"}
    for i in range(8)
  ]
  (tmp_path / "exam" / "test.jsonl").write_text("".join(json.dumps(doc) + "\n" for doc in docs))
  results = suites.evaluate(loaded, suite("exam", tmp_path / "out", data=str(tmp_path)))["tasks"]["exam"]
  assert results["by"]["subject=art"]["items"] == 4 and 0 <= results["metrics"]["calibration_error"]["value"] <= 1
  html = (tmp_path / "out" / "results.html").read_text()
  assert "law &amp; order" in html and "http:" not in html and "https:" not in html and html.count("<svg") > 2


def test_calibration_error():
  """0 where confidence is accuracy; the distance where it is not."""
  right = [{"confidence": 0.75, "acc": float(i % 4 > 0)} for i in range(8)]
  wrong = [{"confidence": 0.95, "acc": 0.0} for _ in range(8)]
  error = lambda records: metrics._calibration_error(np.array([[r["confidence"], r["acc"]] for r in records]))  # noqa: E731
  assert error(right) == 0 and math.isclose(error(wrong), 0.95) and math.isclose(error(right + wrong), 0.475)
  assert metrics.calibration_bins(right + wrong) == [(0.75, 0.75, 8), (pytest.approx(0.95), 0.0, 8)]
  assert page.reliability(metrics.calibration_bins(right)).count("<circle") == 1


def test_a_constant_answer_believes_nothing():
  """Nor does an answer that does not read who saw what: in each pair, the right answers differ."""
  docs = beliefs.stories(60)
  assert docs[0]["choices"][docs[0]["gold"]] == "/shared_folder/photos" and "photo.png" in docs[0]["story"]
  for _, group in itertools.groupby(docs, lambda doc: doc["pair"]):
    pair = list(group)
    assert len({doc["choices"][doc["gold"]] for doc in pair}) == 2 and len({tuple(d["choices"]) for d in pair}) == 1
  generated = docs[4:]
  assert sum(doc["belief"] == "true" for doc in generated) * 2 == len(generated) == 120
  assert {order: sum(doc["order"] == order for doc in generated) for order in (1, 2, 3)} == {1: 40, 2: 40, 3: 40}
  records = [{"pair": doc["pair"], "acc": float(doc["gold"] == 0)} for doc in docs]
  assert metrics._pairs(records).sum() == 0 and 0.3 < np.mean([record["acc"] for record in records]) < 0.7
  assert metrics._pairs([record | {"acc": 1.0} for record in records]).mean() == 1
  (task,) = task_files.load("beliefs_stories")
  own = [{"by": {key: doc[key] for key in ("belief", "order")}} | r for doc, r in zip(docs, records, strict=True)]
  report = metrics.report_by(task, own, 10)
  pairs = {name: score for name, score in report.items() if "pair" in name}
  assert list(pairs) == [f"order={order}, all of a pair right" for order in (1, 2, 3)], "a belief is half of a pair"
  assert [score["items"] for score in pairs.values()] == [21, 20, 20] and not any(s["value"] for s in pairs.values())


def test_a_model_that_knows_nothing_is_right_by_chance(loaded, tmp_path):
  """Where all tokens are equally likely, the order of choices of equal length decides nothing."""
  pairs = [{"good": f"the {word} runs", "bad": f"the {word} runz"} for word in ("cat", "dog", "horse", "bird")]
  (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
  (tmp_path / "pairs.yaml").write_text(
    f"task: pairs\ndataset_path: json\ndataset_kwargs: {{data_files: {{test: {tmp_path}/pairs.jsonl}}}}\n"
    'test_split: test\noutput_type: multiple_choice\ndoc_to_text: ""\ndoc_to_target: 0\n'
    'doc_to_choice: "{{[good, bad]}}"\nmetric_list: [{metric: acc}]\n'
  )
  uniform = dataclasses.replace(loaded, params=jax.tree.map(jnp.zeros_like, loaded.params))
  metrics_of = suites.evaluate(uniform, suite(tmp_path / "pairs.yaml", tmp_path / "out"))["tasks"]["pairs"]["metrics"]
  assert metrics_of["acc"]["value"] == 0.5


@pytest.mark.parametrize("family", ["BERT", "T5"])
def test_other_kinds_score_rows_as_single_ones(family, loaded):
  """Of an encoder the masked token, of an encoder-decoder the targets after the source."""
  task = tiny_task(family)
  params = init_params(task, fake_batch(task, 1, 8))
  rows = [Row((3, 4, 5, 6), (7,), (2,)), Row((8, 9, 3, 5, 6, 7, 2, 2, 3), (9,), (4,))]
  if task.model.kind == "encoder_decoder":
    rows = [Row((3, 4, 5), (7, 8)), Row((8, 9, 3, 5, 6, 7, 2), (9, 4, 5, 6, 1))]
  score = Likelihood(task, loaded.layout, 16, 0)
  for indices, values, _ in score(params, rows):
    for i, value in zip(indices, values, strict=True):
      row = rows[i]
      batch = {"inputs": jnp.asarray([row.inputs])}
      batch |= {"segments": jnp.ones_like(batch["inputs"]), "token_types": jnp.zeros_like(batch["inputs"])}
      batch |= {"decoder_inputs": jnp.asarray([(0, *row.targets[:-1])])}
      log_probs = jax.nn.log_softmax(task.forward(params, batch).logits[0])
      at = row.masked or range(len(row.targets))
      wanted = sum(log_probs[p, t] for p, t in zip(at, row.targets, strict=True))
      np.testing.assert_allclose(value, wanted, rtol=1e-5)


CONTEXT = tuple(range(3, 15))
CHOICES = ((4, 5, 6), (7,), (8, 4, 4, 4, 9), (4, 5, 7), (1, 2))


@pytest.mark.parametrize("shape", [{}, {"family": "Llama"}, {"scan": False}, {"prefix": True}])
def test_a_context_that_rows_share_is_computed_once(shape, loaded, monkeypatch):
  """The continuations neither see nor move each other: their scores are those of rows of their own."""
  changes = {"vocabulary": 50, "length": 32} | shape
  task = tiny_task(changes.pop("family", "GPT"), **changes)
  params = init_params(task, fake_batch(task, 1, 8))
  other = (*CONTEXT[:-1], 40)
  rows = [Row(context + choice[:-1], choice) for choice in CHOICES for context in (CONTEXT, other, CONTEXT[:4])]
  score = Likelihood(task, loaded.layout, 32, 0)
  sizes = sorted(len(group.numbers) for group in score.groups(rows))
  assert sizes == [1] * len(CHOICES) + [len(CHOICES)] * 2, "a context of few tokens is computed again"
  shared, tokens = {}, {}
  for numbers, values, bests in score(params, rows):
    shared |= zip(numbers, zip(values, bests, strict=True), strict=True)
  for numbers, values in score.each_token(params, rows):
    tokens |= zip(numbers, values, strict=True)
  monkeypatch.setattr(Likelihood, "_shares", False)
  for numbers, values, bests in score(params, rows):
    for i, value, best in zip(numbers, values, bests, strict=True):
      np.testing.assert_allclose(shared[i][0], value, rtol=1e-5)
      assert shared[i][1] == best and len(tokens[i]) == len(rows[i].targets)
      np.testing.assert_allclose(tokens[i].sum(), value, rtol=1e-5)


@pytest.mark.parametrize("family", ["T5", "Transformer", "BART"])
def test_a_source_that_rows_share_is_encoded_once(family, loaded, monkeypatch):
  """The targets side by side neither see nor move each other: their scores are those of rows of their own."""
  task = tiny_task(family, vocabulary=50)
  params = init_params(task, fake_batch(task, 1, 8))
  rows = [Row(source, choice) for choice in CHOICES for source in (CONTEXT, (*CONTEXT, 40), CONTEXT[:4])]
  score = Likelihood(task, loaded.layout, 32, 0)
  sizes = sorted(len(group.numbers) for group in score.groups(rows))
  assert sizes == [1] * len(CHOICES) + [len(CHOICES)] * 2, "a source of few tokens is encoded again"
  shared, alone = {}, {}
  for numbers, values in score.each_token(params, rows):
    shared |= zip(numbers, values, strict=True)
  monkeypatch.setattr(Likelihood, "_shares", False)
  for numbers, values in score.each_token(params, rows):
    alone |= zip(numbers, values, strict=True)
  for i in range(len(rows)):
    np.testing.assert_allclose(shared[i], alone[i], rtol=1e-5)


def test_what_is_shared_fits_the_model_and_suits_it(loaded):
  task = tiny_task("GPT", vocabulary=50, length=32)
  rows = [Row(CONTEXT + (5,) * 9, (5,) * 10)] * 5
  groups = Likelihood(task, loaded.layout, 32, 0).groups(rows)
  assert [(len(group.numbers), group.tokens) for group in groups] == [(2, 30), (2, 30), (1, 21)]
  assert sorted(i for group in groups for i in group.numbers) == list(range(5))
  groups = Likelihood(tiny_task("T5"), loaded.layout, 32, 0).groups([Row(CONTEXT, (5,) * 12)] * 5)
  assert [(len(g.numbers), g.tokens, g.targets) for g in groups] == [(2, 12, 24), (2, 12, 24), (1, 12, 12)]
  for family, changes in (("GPT", {"window": 4}), ("LSTM", {}), ("BERT", {})):
    groups = Likelihood(tiny_task(family, **changes), loaded.layout, 32, 0).groups(rows)
    assert all(len(group.numbers) == 1 for group in groups), family


def test_of_a_prefix_language_model_the_context_is_the_prefix(loaded):
  task = tiny_task("GPT", vocabulary=50, length=32, prefix=True)
  params = init_params(task, fake_batch(task, 1, 8))
  rows = [Row(CONTEXT + (4,), (4, 5)), Row(CONTEXT[:5] + (4,), (4, 5))]
  score = Likelihood(task, loaded.layout, 32, 0)
  for numbers, values, _ in score(params, rows):
    for i, value in zip(numbers, values, strict=True):
      inputs, before = jnp.asarray([rows[i].inputs]), len(rows[i].inputs) - 1
      batch = {"inputs": inputs, "prefix": (jnp.arange(before + 1) < before)[None].astype(int)}
      log_probs = jax.nn.log_softmax(task.forward(params, batch).logits[0])
      np.testing.assert_allclose(value, log_probs[before - 1, 4] + log_probs[before, 5], rtol=1e-5)


def test_models_that_are_not_scored_are_refused(loaded):
  with pytest.raises(UserError, match="scores no tokens"):
    Likelihood(Encode(tiny_task("BERT").model), loaded.layout, 16)


@pytest.mark.parametrize(
  "more, message",
  [
    (("--suite", "piqa", "--config.batch=3"), "only mesh and rules may be changed"),
    (("--suite", "piqa", "--only", "validation"), "only mesh and rules may be changed"),
    (("--shots", "0"), "--shots needs a --suite"),
    (("--suite", "piqa", "--limit", "0", "--output", "o"), "--limit: must be a whole number of at least 1, not 0"),
  ],
)
def test_options_that_have_no_effect_are_refused(more, message, capsys):
  assert main(["evaluate", "--workdir", "none", *more]) == 2
  error = capsys.readouterr().err
  assert message in error and error.count("\n") == 1


def test_an_interval_is_of_the_statistic():
  """Of a mean of N normal numbers, about 1.96 standard errors on either side."""
  values = np.random.default_rng(1).normal(3.0, 2.0, 4000)
  low, high = interval(values, np.mean, 2000)
  assert abs((high - low) / (2 * 1.96 * values.std() / 4000**0.5) - 1) < 0.1 and low < values.mean() < high
  assert limits("f1", values, np.mean, resamples=0) == {}
  assert limits("f1", values, np.mean, resamples=2000) == {"f1_low": low, "f1_high": high}


LAUGHS = "a0: &a0 [1, 1]\n" + "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 12))
ODD = {
  "date": "task: 2020-99-99\n", "deep": "task: " + "[" * 20_000 + "]" * 20_000, "number": "task: " + "1" * 5000,
  "aliases": LAUGHS, "circle": "task: &a [*a]\n", "keys": "1: 2\n", "list": "[1]\n",
}  # fmt: skip


@pytest.mark.parametrize("name", ODD)
def test_yaml_that_cannot_be_used_is_one_line(name, tmp_path):
  (tmp_path / "x.yaml").write_text(ODD[name])
  with pytest.raises(UserError, match="x.yaml") as error:
    task_files.load(str(tmp_path / "x.yaml"))
  assert "\n" not in str(error.value)
