"""Labelled records: texts made of fields, choices in the forms in which they are published, and TFDS's label names."""

import json

import numpy as np
import pytest

from lmjax.data.objectives.ranking import Ranking
from lmjax.data.sources.base import BadRecord
from lmjax.data.sources.choices import MultipleChoice
from lmjax.data.sources.examples import Example
from lmjax.data.sources.labelled_records import JsonRecords
from lmjax.data.sources.labelled_tfds import LabelledTFDS
from lmjax.data.sources.records import prepare_tfds
from lmjax.data.sources.superglue import MultiRC, ReCoRD
from lmjax.data.tokenizers.base import Bytes
from lmjax.data.tokenizers.registry import TokenizerConfig
from lmjax.utils.errors import UserError


def records(tmp_path, lines, **options):
  (tmp_path / "x.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
  source = JsonRecords(str(tmp_path / "x.jsonl"), **options)
  return [source[i] for i in range(len(source))]


def test_texts_of_several_fields(tmp_path):
  """WiC, WSC and BoolQ as SuperGLUE has them."""
  wic = {"word": "place", "sentence1": "a {place} here", "sentence2": "do place it", "idx": 0, "label": False}
  (example,) = records(tmp_path, [wic], text="{word}: {sentence1}", other="sentence2")
  assert example == Example("place: a {place} here", "do place it", "false", f"{tmp_path}/x.jsonl:1")
  wsc = {"text": "Mark said he was", "target": {"span1_text": "Mark", "span2_text": "he"}, "label": True}
  lines = [wsc, wsc | {"target": "Mark"}, {"text": "a", "label": True}, wsc | {"label": None}, wsc | {"text": 3}]
  (tmp_path / "w").mkdir()
  good, *bad = records(tmp_path / "w", lines, other="{target.span2_text} is {target.span1_text}", names={"true": "yes"})
  assert (good.text, good.other, good.label) == ("Mark said he was", "he is Mark", "yes")
  assert [record.where[-2:] for record in bad] == [":2", ":3", ":4", ":5"]
  assert "has no text under 'target.span2_text'; its keys: text, target, label" in bad[0].why
  assert "has no label under 'label'" in bad[2].why and "has no text under 'text'" in bad[3].why


FORMS = {
  "columns": ({"p": "x", "c1": "a", "c2": "b", "label": 1}, dict(choices=("{c1}", "so {c2}")), ("a", "so b"), "1"),
  "list": ({"p": "x", "endings": ["a", "b", "c"], "label": "2"}, dict(choices="endings"), ("a", "b", "c"), "2"),
  "objects": (
    {"p": "x", "q": {"choices": [{"text": "a", "label": "A"}, {"text": "b", "label": "B"}]}, "answerKey": "B"},
    dict(choices="q.choices", label="answerKey"), ("a", "b"), "1",
  ),
  "lists": (
    {"p": "x", "choices": {"text": ["a", "b"], "label": ["1", "2"]}, "answerKey": "1"},
    dict(choices="choices", label="answerKey"), ("a", "b"), "0",
  ),
  "numbers from one": ({"p": "x", "o": ["a", "b"], "answer": "2"},
                       dict(choices="o", label="answer", names={"1": "0", "2": "1"}), ("a", "b"), "1"),
}  # fmt: skip


@pytest.mark.parametrize("form", FORMS)
def test_choices_in_all_forms(form, tmp_path):
  record, options, choices, label = FORMS[form]
  (example,) = records(tmp_path, [record], text="p", **options)
  assert example == MultipleChoice("x", choices, label, f"{tmp_path}/x.jsonl:1")


def test_malformed_choices_are_named(tmp_path):
  lines = [
    {"p": "x", "o": "ab", "label": 0}, {"p": "x", "o": ["a", 1], "label": 0}, {"p": "x", "label": 0},
    {"p": "x", "o": [{"text": "a", "label": "A"}, {"text": "b"}], "label": "A"},
    {"p": "x", "o": {"text": ["a"], "label": ["A", "B"]}, "label": "A"}, {"p": "x", "o": [None], "label": 0},
    {"p": "x", "o": [{"text": "a", "label": "A"}], "label": "C"},
  ]  # fmt: skip
  bad = records(tmp_path, lines, text="p", choices="o")
  assert all(isinstance(record, BadRecord) for record in bad), bad
  assert all("has no list of choices under 'o'" in record.why for record in bad[:-1])
  assert bad[-1].why == "has the label 'C', and its choices have A"
  with pytest.raises(ValueError, match="another text, or choices, not both"):
    JsonRecords("x", other="a", choices="b")


def test_labels_in_a_file_of_their_own(data, tmp_path):
  """PIQA, as published; splits and order keep each label with its line."""
  folder = data / "eval_piqa"
  options = dict(text="goal", choices=("sol1", "sol2"), labels=str(folder / "valid-labels.lst"))
  whole = JsonRecords(str(folder / "valid.jsonl"), **options)
  labels = (folder / "valid-labels.lst").read_text().split()
  assert [whole[i].label for i in range(len(whole))] == labels and len(whole) > 100
  part = JsonRecords(str(folder / "valid.jsonl"), **options, split="50%:", shuffle=True)
  pairs = {(record.text, *record.choices): record.label for record in map(whole.__getitem__, range(len(whole)))}
  assert all(pairs[(record.text, *record.choices)] == record.label for record in map(part.__getitem__, range(9)))
  (tmp_path / "few").write_text("1\n")
  with pytest.raises(UserError, match="has 1 labels for"):
    JsonRecords(str(folder / "valid.jsonl"), **(options | {"labels": str(tmp_path / "few")}))[0]


def ranking(tmp_path, lines, **options):
  records(tmp_path, lines)
  source = JsonRecords(str(tmp_path / "x.jsonl"), text="p", choices="o")
  return Ranking(source, source, 24, TokenizerConfig("bytes"), **options)


def test_rows_of_choices(tmp_path, capsys):
  lines = [
    {"p": "ab", "o": ["c", "de"], "label": 1}, {"p": "f", "o": ["g", "hi", "jkl" * 9], "label": 0},
    {"p": "ab", "o": ["c", " "], "label": 1}, {"p": "ab", "o": ["c", "d"], "label": 2},
    {"p": "a", "o": ["b"] * 4, "label": 0},
  ]  # fmt: skip
  (tmp_path / "few").mkdir()  # a file is read once
  assert ranking(tmp_path / "few", lines[:4]).learned() == {"labels": ("0", "1", "2")}
  data = ranking(tmp_path, lines, labels=("0", "1", "2"))
  (batch,) = data.validate(Bytes(), 2)
  rows = batch["inputs"].reshape(2, 3, 8)
  assert rows[0, 0].tolist() == [256, 97, 98, 256, 99, 256, 0, 0] and not rows[0, 2].any()
  assert rows[0, 1].tolist() == [256, 97, 98, 256, 100, 101, 256, 0] and rows[1, 2, -1] == 256
  assert batch["segments"].reshape(2, 3, 8)[0].sum(1).tolist() == [6, 7, 0] and batch["labels"].tolist() == [1, 0]
  error = capsys.readouterr().err
  assert "3 of 5 records skipped" in error and "x.jsonl:3 has an empty text" in error
  encode = data.documents(data.source, Bytes(), None, 1).encode
  why = [encode(record).why for record in map(data.source.__getitem__, (2, 3, 4))]
  assert "has 2 choices, the label '2', and the run has 3" in why[1] and "has 4 choices" in why[2]
  for wrong in (dict(length=25), dict(buckets=(8,)), dict(labels=("1", "0", "2")), dict(regression=True)):
    with pytest.raises(ValueError):
      Ranking(data.source, data.source, **({"length": 24, "labels": ("0", "1", "2")} | wrong))


def test_buckets_keep_choices_apart(tmp_path):
  lines = [{"p": "a", "o": ["b" * n, "c"], "label": n % 2} for n in (1, 5, 2, 9, 3, 1)]
  data = ranking(tmp_path, lines, labels=("0", "1"), buckets=(12, 16), streams=1)
  batches, seen = data.train(Bytes(), 1, seed=0), set()
  for _ in range(18):
    batch = next(batches)
    parts = batch["inputs"].reshape(2, -1)
    assert parts[1, :5].tolist() == [256, 97, 256, 99, 256] and not parts[1, 5:].any()
    size = int((parts[0] == ord("b")).sum())
    assert batch["inputs"].shape[1] == min(n for n in (12, 16, 24) if 2 * (size + 4) <= n or n == 24)
    seen.add(size)
  batches.close()
  assert seen >= {1, 2, 3, 5}


@pytest.fixture(scope="module")
def tfds_folder(tmp_path_factory):
  import tensorflow_datasets as tfds

  class TinyGlue(tfds.core.GeneratorBasedBuilder):
    """Pairs with a class, a number, and choices."""

    VERSION = tfds.core.Version("1.0.0")

    def _info(self):
      text = tfds.features.Text()
      features = {
        "sentence1": text, "sentence2": text, "idx": np.int32, "score": np.float32,
        "label": tfds.features.ClassLabel(names=["entailment", "not_entailment"]),
        "endings": tfds.features.Sequence(text),
      }  # fmt: skip
      return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

    def _split_generators(self, dl_manager):
      return {"train": self._generate_examples(8), "test": self._generate_examples(2)}

    def _generate_examples(self, number):
      for i in range(number):
        label = i % 2 if number > 2 else -1
        yield i, {"sentence1": f"é {i}", "sentence2": "b", "idx": i, "score": i / 2, "label": label,
                  "endings": ["x", "y"]}  # fmt: skip

  folder = tmp_path_factory.mktemp("tfds")
  prepare_tfds("tiny_glue", str(folder))
  return str(folder)


def test_tfds_without_tensorflow(tfds_folder):
  options = dict(name="tiny_glue", folder=tfds_folder)
  source = LabelledTFDS(**options, text="sentence1", other="{sentence2}!", split="train[:50%]")
  found = [source[i] for i in range(len(source))]
  assert len(found) == 4 and {example.other for example in found} == {"b!"}
  for example in found:
    number = int(example.text.removeprefix("é "))
    assert example.label == ("entailment", "not_entailment")[number % 2] and example.where.startswith(
      "tiny_glue/train:"
    )
  scores = LabelledTFDS(**options, text="sentence1", label="score")
  assert all(float(scores[i].label) == int(scores[i].text[2:]) / 2 for i in range(8))
  choices = LabelledTFDS(**options, text="sentence1", choices="endings", label="label", names={"entailment": "0"})
  assert {(e.choices, e.label) for e in map(choices.__getitem__, range(8))} == {
    (("x", "y"), "0"), (("x", "y"), "not_entailment"),
  }  # fmt: skip
  test = LabelledTFDS(**options, text="sentence1", split="test")
  assert isinstance(test[0], BadRecord) and "has no label" in test[0].why
  with pytest.raises(UserError, match="has no key 'labels'; did you mean 'label'"):
    LabelledTFDS(**options, text="sentence1", label="labels")[0]


RC = {"passage": {"text": "Ann ran.", "questions": [
  {"question": "Who ran?", "answers": [{"text": "Ann", "label": 1}, {"text": "Bob", "label": 0}]},
  {"question": "Did Bob?", "answers": [{"text": "no", "label": 1}]},
]}}  # fmt: skip
CORD = {
  "passage": {"text": "Ann saw Bob.\n@highlight\nAnn left", "entities": [
    {"start": 0, "end": 2}, {"start": 8, "end": 10}, {"start": 24, "end": 26},
  ]},
  "qas": [{"query": "@placeholder was seen", "answers": [{"start": 8, "end": 10, "text": "Bob"}]}],
}  # fmt: skip


def test_lines_with_many_examples(tmp_path):
  """MultiRC and ReCoRD as SuperGLUE publishes them; a line that is not is one malformed record."""
  broken = [{}, {"passage": 3}, {"passage": {"text": " ", "questions": RC["passage"]["questions"]}}]
  (tmp_path / "rc.jsonl").write_text("".join(json.dumps(line) + "\n" for line in (RC, *broken, RC)))
  source = MultiRC(str(tmp_path / "rc.jsonl"))
  rows = [source[i] for i in range(len(source))]
  assert [row[1:3] for row in rows[:3]] == [
    ("Who ran? Ann", "true"), ("Who ran? Bob", "false"), ("Did Bob? no", "true")
  ]  # fmt: skip
  assert [isinstance(row, BadRecord) for row in rows] == [False] * 3 + [True] * 3 + [False] * 3
  assert rows[3].where.endswith(":2") and "is not as MultiRC has it" in rows[3].why
  assert len(MultiRC(str(tmp_path / "rc.jsonl"), split="80%:")) == 3  # of the lines
  wrong = CORD | {"qas": [{"query": "x", "answers": []}]}
  (tmp_path / "c.jsonl").write_text(json.dumps(CORD) + "\n" + json.dumps(wrong) + "\n")
  rows = list(map(ReCoRD(str(tmp_path / "c.jsonl")).__getitem__, range(3)))
  assert [row[1:3] for row in rows[:2]] == [("Ann was seen", "false"), ("Bob was seen", "true")]
  assert "@" not in rows[0].text and isinstance(rows[2], BadRecord)
  (tmp_path / "odd").mkdir()
  answers = [{"text": "Ann", "label": label} for label in (1, -1)]
  odd = {"passage": {"text": "Ann ran.", "questions": [{"question": "Who?", "answers": answers}]}}
  (tmp_path / "odd" / "rc.jsonl").write_text(json.dumps(odd) + "\n")
  for place in ({"start": -3, "end": 4}, {"start": 2, "end": 99}, {"start": 5, "end": 3}):
    line = CORD | {"passage": CORD["passage"] | {"entities": [place]}}
    (tmp_path / "odd" / "c.jsonl").write_text(json.dumps(line) + "\n")
    assert "outside of the text" in ReCoRD(str(tmp_path / "odd" / "c.jsonl"))[0].why
  assert isinstance(MultiRC(str(tmp_path / "odd" / "rc.jsonl"))[0], BadRecord)
