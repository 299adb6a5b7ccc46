"""Labelled examples: sources by column names, rows for every kind of model, what is skipped and why."""

import json

import numpy as np
import pytest

from lmjax import screen
from lmjax.data import buckets
from lmjax.data.objectives import labelled
from lmjax.data.objectives.arrange import Arrangement
from lmjax.data.objectives.labelled import Labelled, LabelledDocuments
from lmjax.data.sources.as_text import AsText
from lmjax.data.sources.base import BadRecord
from lmjax.data.sources.choices import MultipleChoice
from lmjax.data.sources.examples import Example, Question, Tagged
from lmjax.data.sources.labelled import Table
from lmjax.data.sources.labelled_records import JsonRecords
from lmjax.data.tokenizers.base import Bytes
from lmjax.data.tokenizers.registry import TokenizerConfig
from lmjax.data.tokenizers.words import Words
from lmjax.utils.errors import UserError


def table(tmp_path, content, name="train.tsv", **options):
  (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
  return Table(str(tmp_path / name), **options)


def rows(source):
  return [source[i] for i in range(len(source))]


def test_columns_are_found_by_name_in_any_order(tmp_path):
  source = table(tmp_path, '\ufefflabel\tid\tsentence\n1\t7\tit "is" good\r\n0\t8\tbad\n', names={"1": "good"})
  assert rows(source) == [
    Example('it "is" good', None, "good", f"{tmp_path}/train.tsv:2"),
    Example("bad", None, "0", f"{tmp_path}/train.tsv:3"),
  ]
  source = table(
    tmp_path, '"one, two",three,0.5\n"a\nb",c,1\nd,e,2\n', "x.csv", text="0", other="1", label="2", header=False
  )
  assert [(e.text, e.other, e.label) for e in rows(source)] == [
    ("one, two", "three", "0.5"), ("a\nb", "c", "1"), ("d", "e", "2"),
  ]  # fmt: skip
  assert rows(source)[2].where == f"{tmp_path}/x.csv:4"
  with pytest.raises(
    UserError, match="has no column 'sentense'; did you mean 'sentence'.*set text to one of label, id"
  ):
    rows(table(tmp_path, "label\tid\tsentence\n", text="sentense"))


@pytest.mark.parametrize(
  "content,name,line,why",
  [
    ("sentence\tlabel\na\t1\nb\n", "t.tsv", 3, "has 1 fields, and the first row has 2"),
    ("sentence\tlabel\na\t1\n\nb\t1\t2\n", "t.tsv", 4, "has 3 fields"),
    (b"sentence\tlabel\na\t1\n\xff\t1\n", "t.tsv", 3, "is not UTF-8"),
    ('sentence,label\na,1\n"b"c,1\n', "t.csv", 3, "is not CSV"),
    ('sentence,label\na,1\n"b,1\n', "t.csv", 3, "is not CSV"),
  ],
)
def test_a_malformed_row_is_named_and_the_others_are_read(tmp_path, content, name, line, why):
  good, bad = rows(table(tmp_path, content, name))
  assert good == Example("a", None, "1", f"{tmp_path}/{name}:2")
  assert isinstance(bad, BadRecord) and bad.where == f"{tmp_path}/{name}:{line}" and why in bad.why


def test_json_lines_by_keys(tmp_path):
  lines = [{"s": "a", "t": "b", "y": True}, {"s": "c", "t": "d", "y": 2}, {"s": "e", "y": 1}, {"s": "e", "t": "f"}]
  (tmp_path / "x.jsonl").write_text("\n".join(map(json.dumps, lines)))
  first, second, *bad = rows(JsonRecords(str(tmp_path / "x.jsonl"), text="s", other="t", label="y", names={"2": "two"}))
  assert (first, second) == (
    Example("a", "b", "true", f"{tmp_path}/x.jsonl:1"), Example("c", "d", "two", f"{tmp_path}/x.jsonl:2"),
  )  # fmt: skip
  assert "has no text under 't'; its keys: s, y" in bad[0].why and "has no label under 'y'" in bad[1].why


def reader(tmp_path, content, validation=None, **options):
  source = table(tmp_path, "sentence\tlabel\n" + content)
  other = table(tmp_path, "sentence\tlabel\n" + (validation or content), "dev.tsv")
  return Labelled(source, other, **({"length": 16, "tokenizer": TokenizerConfig("bytes")} | options))


def test_a_malformed_row_of_a_small_set_counts_once_in_all_epochs(tmp_path):
  """And a weight of a class that there is not is refused."""
  rows = "".join(f"text {i}\t{'ab'[i % 2]}\n" for i in range(59)) + " \ta\n"
  batches = reader(tmp_path, rows, labels=("a", "b")).train(Bytes(), 8, 0)
  for _ in range(40):  # five epochs
    next(batches)
  assert batches.read > 250 and len(batches.skipped) == 1
  batches.close()
  with pytest.raises(UserError, match="data.class_weights: 'c' is none of the labels a, b"):
    reader(tmp_path, rows, labels=("a", "b"), class_weights={"c": 2.0}).train(Bytes(), 8, 0)


def test_labels_come_from_the_training_data_and_others_are_skipped(tmp_path, capsys):
  data = reader(tmp_path, "x\tb\ny\ta\n", "x\ta\ny\tc\n \ta\nz\tb\n")
  assert data.learned() == {"labels": ("a", "b")}
  data = reader(tmp_path, "x\tb\ny\ta\n", "x\ta\ny\tc\n \ta\nz\tb\n", labels=("a", "b"))
  assert data.learned() == {} and data.shared()["labels"] == ("a", "b")
  (batch,) = data.validate(Bytes(), 3)
  assert batch["labels"].tolist() == [0, 1, 0] and batch["row_weights"].tolist() == [1, 1, 0]
  assert batch["segments"][2].sum() == 0
  error = capsys.readouterr().err
  assert "2 of 4 records skipped" in error and "dev.tsv:3 has the label 'c', which is not one of the run's" in error
  for name in ("many", "one"):
    (tmp_path / name).mkdir()  # a file is read once
  many = "".join(f"{i}\ta\n" for i in range(150)) + "x\tc\n" * 3
  with pytest.raises(UserError, match="3 of 153 records are malformed, more than 1 %"):
    reader(tmp_path / "many", "x\tb\ny\ta\n", many, labels=("a", "b")).validate(Bytes(), 3)
  with pytest.raises(UserError, match="has 1 label"):
    reader(tmp_path / "one", "x\tb\n").learned()


def test_validation_rows_have_the_shortest_bucket_that_fits(tmp_path):
  sizes = [9, 1, 2, 14, 3, 8, 2]
  content = "".join(f"{'x' * size}\t{i % 2}\n" for i, size in enumerate(sizes))
  data = reader(tmp_path, content, labels=("0", "1"), buckets=(4, 8))
  batches = data.validate(Bytes(), 2)
  tokens = [(batch["segments"] > 0).sum(1) for batch in batches]
  extra = tokens[0][0] - 1  # special tokens
  assert np.concatenate(tokens).tolist() == [size + extra for size in sorted(sizes)][:6] + [min(14 + extra, 16), 0]
  for batch, count in zip(batches, tokens, strict=True):
    assert batch["inputs"].shape[1] == next(length for length in (4, 8, 16) if length >= count.max())
  order = sorted(range(7), key=lambda i: sizes[i])
  assert np.concatenate([batch["labels"] for batch in batches]).tolist() == [i % 2 for i in order] + [0]
  assert sum(batch["row_weights"].sum() for batch in batches) == 7
  first = data.validate(Bytes(), 2, steps=1)
  assert len(first) == 1 and (first[0]["segments"] > 0).sum() == 9 + 1 + 2 * extra  # the first two of the data


def test_numbers_are_checked(tmp_path):
  data = reader(tmp_path, "x\t0.5\ny\tnan\nz\t-2\nw\thigh\n", regression=True)
  (batch,) = data.validate(Bytes(), 2)
  assert batch["values"].tolist() == [0.5, -2.0] and data.shared()["labels"] == ()


def test_an_epoch_has_every_example_once_in_the_row_it_fits(tmp_path, monkeypatch):
  encoded, encode = [], LabelledDocuments.encode_text
  monkeypatch.setattr(LabelledDocuments, "encode_text", lambda self, text: encoded.append(text) or encode(self, text))
  sizes = [1, 2, 5, 3, 9, 12, 2, 1, 4, 6, 2, 3, 1, 2, 3, 8]
  data = reader(
    tmp_path, "".join(f"{chr(97 + i) * size}\t{i % 2}\n" for i, size in enumerate(sizes)), labels=("0", "1"),
    buckets=(4, 8), streams=1, class_weights={"1": 2.0},
  )  # fmt: skip
  batches, seen = data.train(Bytes(), 1, seed=0), {}
  for _ in range(3 * len(sizes)):
    batch = next(batches)
    letter, length = int(batch["inputs"][0, 1]), batch["inputs"].shape[1]
    size = sizes[letter - 97] + 2  # [CLS] and [SEP]
    assert length == min(bucket for bucket in (4, 8, 16) if size <= bucket)
    assert batch["segments"].sum() == size and batch["row_weights"][0] == 1 + (letter - 97) % 2
    seen[letter] = seen.get(letter, 0) + 1
  batches.close()
  assert set(seen) == {97 + i for i in range(len(sizes))} and max(seen.values()) - min(seen.values()) <= 2
  assert len(encoded) <= 5 * len(sizes), "each is encoded once in an epoch, and not for every length"


@pytest.mark.parametrize("longest", [3, 14])
def test_rows_do_not_wait_long_for_examples_that_are_rare_or_are_not_there(longest, tmp_path, monkeypatch):
  """Of 100 examples, one is long and the sample has it; or none is, and the sample does not tell."""
  monkeypatch.setattr(labelled, "SAMPLE", 20)
  monkeypatch.setattr(buckets, "PATIENCE", 10)
  encoded, encode = [], LabelledDocuments.encode_text
  monkeypatch.setattr(LabelledDocuments, "encode_text", lambda self, text: encoded.append(text) or encode(self, text))
  sizes = [longest, *(i % 3 + 1 for i in range(99))]
  data = reader(tmp_path, "".join(f"{'a' * size}\t0\n" for size in sizes), labels=("0", "1"), buckets=(4, 8))
  batches, lengths = data.train(Bytes(), 4, seed=0), []
  for _ in range(63):
    batch = next(batches)
    lengths.append(batch["inputs"].shape[1])
    assert batch["segments"].any(axis=1).all()
  batches.close()
  assert 2 <= lengths.count(16) <= 3, "as often as in the sample"
  assert len(encoded) < 20 + 3 * 4 * (63 + 8) + 4 * 4 * 12


def test_epochs_are_counted_in_examples(tmp_path):
  """A row holds one example, however short: eight rows a step, twice 16 examples in four steps."""
  data = reader(tmp_path, "".join(f"{'x' * (i % 5 + 1)}\t{i % 2}\n" for i in range(16)), labels=("0", "1"))
  assert screen._data(data, Bytes(), 8, 4).endswith("; 2 epochs in 4 steps")


def test_rows_of_every_kind():
  row = Arrangement("encoder", Bytes(), 16)("ab", "c")
  assert row["inputs"].tolist() == [256, 97, 98, 256, 99, 256] and row["token_types"].tolist() == [0, 0, 0, 0, 1, 1]
  row = Arrangement("encoder_decoder", Bytes(), 16)("ab", "c")
  assert row["inputs"].tolist() == [97, 98, 256, 99, 256]
  row = Arrangement("decoder", Bytes(), 16, delimiter="$")("ab", "c")
  assert row["inputs"].tolist() == [256, 97, 98, 36, 99, 256] and row["targets"].tolist() == [97, 98, 36, 99, 256, 0]
  assert row["weights"].tolist() == [1, 1, 1, 1, 1, 0]
  both = Arrangement("decoder", Bytes(), 16, symmetric=True)("ab", "c")
  assert both["inputs"].tolist() == [256, 97, 98, 256, 99, 256, 256, 99, 256, 97, 98, 256]
  assert both["segments"].tolist() == [1] * 6 + [2] * 6 and both["positions"].tolist() == [*range(6)] * 2
  words = Words(("<S>", "</S>", "<unk>", "a"))
  row = Arrangement("bidirectional_lm", words, 16, characters=8)("a b", "c")
  assert row["inputs"].tolist() == [0, 3, 2, 1, 2, 1] and row["characters"].shape == (6, 8)
  assert row["characters"][2, 1] == ord("b") + 1 and row["characters"][4, 1] == ord("c") + 1
  with pytest.raises(UserError, match="needs data.tokenizer.kind"):
    Arrangement("bidirectional_lm", Bytes(), 16)


@pytest.mark.parametrize("kind", ["encoder", "decoder", "encoder_decoder"])
@pytest.mark.parametrize("symmetric", [False, True])
def test_long_texts_lose_their_ends_and_special_tokens_stay(kind, symmetric):
  rng = np.random.default_rng(0)
  arrange = Arrangement(kind, Bytes(), 20, symmetric=symmetric)
  short = arrange("a", "b")["inputs"]
  for _ in range(30):
    a, b = ("x" * int(n) for n in rng.integers(1, 30, 2))
    row = arrange(a, b)
    assert len(row["inputs"]) <= 20 and (row["inputs"] == 256).sum() == (short == 256).sum()
  with pytest.raises(UserError, match="leave no space"):
    Arrangement(kind, Bytes(), 2, symmetric=symmetric)("a", "b")


def test_examples_as_text_to_text(tmp_path):
  source = table(tmp_path, "sentence\tlabel\nfine\t1\nx\n", names={"1": "positive"})
  pairs = AsText(source, "sst2 sentence: {text}")
  assert pairs[0] == ("sst2 sentence: fine", "positive") and isinstance(pairs[1], BadRecord) and len(pairs) == 2
  with pytest.raises(ValueError, match="other fields than"):
    AsText(source, "{sentence}")


def test_every_kind_of_example_is_text_to_text():
  """Questions, tags, choices and numbers; empty texts are malformed."""
  made = [
    Question("1", "Who?", "It was Ann.", (("Ann", 7),)),
    Question("2", "Who?", "It rained.", ()),
    Tagged(("Ann", "sang"), ("B-PER", "O")),
    MultipleChoice("It rained.", ("The road was wet.", "It was dry."), "0"),
    Example("a", "b", "2.57"),
    Example(" ", None, "1", "x.tsv:5"),
    Example("a", "", "1", "x.tsv:6"),
  ]
  pairs = AsText(made, "{text} | {other}")
  assert [pairs[i] for i in range(4)] == [
    ("Who? | It was Ann.", "Ann"),
    ("Who? | It rained.", "unanswerable"),
    ("Ann sang | ", "B-PER O"),
    ("It rained. | choice1: The road was wet. choice2: It was dry.", "The road was wet."),
  ]
  assert AsText(made[4:5], "{text} {other}", rounded=0.2)[0] == ("a b", "2.6")
  assert AsText(made[4:5], "{text} {other}", rounded=0.5)[0] == ("a b", "2.5")
  assert (
    AsText([Example("a", None, "many", "x:1")], rounded=0.2)[0].why == "has the label 'many', which is not a number"
  )
  assert [pairs[i] for i in (5, 6)] == [BadRecord(f"x.tsv:{i}", "has an empty text") for i in (5, 6)]
