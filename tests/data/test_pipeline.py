"""Streams: every token once, the same order for any number of workers, and malformed records counted."""

import gzip
import json
import sys

import numpy as np
import pytest
from absl import flags

from lmjax.data import packing
from lmjax.data.concatenate import Concatenate
from lmjax.data.objectives.causal import Text
from lmjax.data.sources import python_docs
from lmjax.data.sources.base import BadRecord
from lmjax.data.sources.python_docs import PythonDocs
from lmjax.data.sources.records import JsonLines
from lmjax.data.sources.splits import split_range
from lmjax.data.sources.text import TextFiles
from lmjax.data.tokenizers import registry
from lmjax.data.tokenizers.registry import TokenizerConfig
from lmjax.utils.errors import UserError

flags.FLAGS.mark_as_parsed()  # as `python -m lmjax` does, for worker processes
BYTES = registry.Bytes()


@pytest.fixture
def files(tmp_path):
  """Forty documents of very different lengths."""
  rng = np.random.default_rng(0)
  for i in range(40):
    words = rng.integers(0, 26, rng.integers(1, 200))
    (tmp_path / f"{i:02}.txt").write_text("".join(chr(97 + w) for w in words))
  return str(tmp_path / "*.txt")


def text(files, length=32, **changes):
  source = TextFiles(files, document="file")
  return Text(source, source, length, TokenizerConfig("bytes"), **changes)


def take(batches, count):
  taken = [next(batches) for _ in range(count)]
  batches.close()
  return taken, batches.positions


def same(first, second):
  return all(np.array_equal(a[key], b[key]) for a, b in zip(first, second, strict=True) for key in a)


def test_no_token_is_lost_or_doubled(files):
  source = TextFiles(files, document="file")
  batches = text(files).validate(BYTES, 4)
  kept = np.concatenate([b["targets"][b["weights"] > 0] for b in batches])
  whole = np.concatenate([[*BYTES.encode(source[i]), BYTES.end] for i in range(len(source))])
  np.testing.assert_array_equal(kept, whole)
  assert sum(b["bytes"].sum() for b in batches) == pytest.approx(len(whole) - len(source))


def test_rows_are_what_they_say(files):
  for b in take(text(files).train(BYTES, 4, 0), 20)[0]:
    same_document = b["segments"][:, 1:] == b["segments"][:, :-1]
    np.testing.assert_array_equal(b["inputs"][:, 1:][same_document], b["targets"][:, :-1][same_document])
    np.testing.assert_array_equal(np.diff(b["positions"])[same_document], 1)
    assert (b["positions"][:, 1:][~same_document] == 0).all() and (b["segments"] > 0).all()


@pytest.mark.parametrize("mode", ["concatenate", "windows"])
@pytest.mark.parametrize("streams", [0, 2])
def test_resuming_is_exact(files, mode, streams):
  data = text(files, packing=mode, streams=streams)
  whole, _ = take(data.train(BYTES, 4, 7), 12)
  _, positions = take(data.train(BYTES, 4, 7), 5)
  rest, _ = take(data.train(BYTES, 4, 7, positions), 7)
  assert same(whole[5:], rest)
  assert not same(whole, take(data.train(BYTES, 4, 8), 12)[0]), "the seed must matter"


def test_workers_change_nothing(files):
  plain, positions = take(text(files).train(BYTES, 4, 0), 6)
  for workers in (1, 2, 3):
    others, where = take(text(files, workers=workers).train(BYTES, 4, 0), 6)
    assert same(plain, others)
    np.testing.assert_array_equal(positions, where)


def test_an_epoch_visits_every_document_once_and_the_next_one_shuffles(files):
  data = text(files, streams=1)
  tokens = []
  for b in take(data.train(BYTES, 1, 0), 400)[0]:
    tokens += b["targets"][b["weights"] > 0].tolist()
  documents, current = [], []
  for token in tokens:
    if token == BYTES.end:
      documents.append(BYTES.decode(current))
      current = []
    else:
      current.append(token)
  source = TextFiles(files, document="file")
  first, second = documents[:40], documents[40:80]
  assert sorted(first) == sorted(second) == sorted(source[i] for i in range(40))
  assert first != second


def test_windows_are_windows_of_the_text(files):
  whole = bytes(text(files, packing="windows").validate(BYTES, 1)[0]["inputs"][0].tolist())
  source = TextFiles(files, document="file")
  everything = "".join(source[i] for i in range(40)).encode()
  assert everything.startswith(whole)
  for b in take(text(files, packing="windows").train(BYTES, 4, 0), 3)[0]:
    assert all(bytes(row.tolist()) in everything for row in b["inputs"])


def test_sources(tmp_path):
  body = "one\ntwo\n\nthree\n   \nfour"
  (tmp_path / "a.txt").write_text(body)
  (tmp_path / "b.txt.gz").write_bytes(gzip.compress(b"five\n"))
  both = str(tmp_path / "*.txt*")
  assert [*map(TextFiles(both, "line").__getitem__, range(7))][-1] == "five\n"
  assert len(TextFiles(both, "file")) == 2
  assert [t.strip() for t in map(TextFiles(both, "paragraph").__getitem__, range(4))] == [
    "one\ntwo",
    "three",
    "four",
    "five",
  ]
  chunks = TextFiles(str(tmp_path / "a.txt"), chunk_bytes=8)
  assert "".join(chunks[i] for i in range(len(chunks))) == body and len(chunks) > 1
  (tmp_path / "c.jsonl").write_text("".join(json.dumps({"text": f"t{i}"}) + "\n" for i in range(10)))
  lines = JsonLines(str(tmp_path / "c.jsonl"))
  assert [lines[i] for i in range(10)] == [f"t{i}" for i in range(10)]
  assert len(JsonLines(str(tmp_path / "c.jsonl"), split="90%:")) == 1


def test_malformed_records_are_named(tmp_path):
  (tmp_path / "malformed.jsonl").write_bytes(b'{"text": "ok"}\n[1]\n{"body": "x"}\n{"text": \n{"text": "\xff"}\n')
  source = JsonLines(str(tmp_path / "malformed.jsonl"))
  records = [source[i] for i in range(5)]
  assert records[0] == "ok"
  assert [record.where.rsplit(":", 1)[1] for record in records[1:]] == ["2", "3", "4", "5"]
  assert [
    "list" in records[1].why,
    "body" in records[2].why,
    "JSON" in records[3].why,
    "UTF-8" in records[4].why,
  ] == [True] * 4
  assert all(isinstance(record, BadRecord) for record in records[1:])


@pytest.mark.parametrize("workers", [0, 2])
def test_malformed_records_are_counted_and_too_many_stop_the_run(tmp_path, workers):
  lines = [json.dumps({"text": "word " * 10})] * 300
  lines[17] = "no json"
  (tmp_path / "a.jsonl").write_text("\n".join(lines))
  source = JsonLines(str(tmp_path / "a.jsonl"))
  batches = Text(source, source, 64, TokenizerConfig("bytes"), workers=workers).train(BYTES, 2, 0)
  for _ in range(130):
    next(batches)
  batches.close()
  assert [record.where.rsplit(":", 1)[1] for record in batches.skipped] == ["18"] and batches.read >= 300
  lines[::20] = ["no json"] * 15
  (tmp_path / "b.jsonl").write_text("\n".join(lines))
  source = JsonLines(str(tmp_path / "b.jsonl"))
  batches = Text(source, source, 64, TokenizerConfig("bytes")).train(BYTES, 2, 0)
  with pytest.raises(UserError, match=r"records are malformed, more than 1 %.*b.jsonl:\d+ is not JSON"):
    for _ in range(300):
      next(batches)
  batches.close()


@pytest.mark.parametrize("packing", ["concatenate", "first_fit"])
def test_data_without_any_valid_record_does_not_hang(tmp_path, packing):
  (tmp_path / "a.jsonl").write_text('{"body": "x"}\n' * 500)
  source = JsonLines(str(tmp_path / "a.jsonl"))
  batches = Text(source, source, 64, TokenizerConfig("bytes"), packing=packing).train(BYTES, 2, 0)
  with pytest.raises(UserError, match="no text in 500 consecutive records.*has no text under 'text'"):
    next(batches)
  batches.close()


def test_splits():
  assert (
    split_range(10, ":90%") == range(9) and split_range(10, "90%:") == range(9, 10) and split_range(10, "") == range(10)
  )
  for split in ("half", "90", "10%:5%", "50%:55%"):
    with pytest.raises(UserError, match="split"):
      split_range(10, split)


def test_errors_for_files(tmp_path):
  with pytest.raises(UserError, match=r"no file matches.*nothing\*"):
    len(TextFiles(str(tmp_path / "nothing*")))
  (tmp_path / "x.gz").write_bytes(gzip.compress(b"hello" * 1000)[:30])
  with pytest.raises(UserError, match="cannot be read"):
    len(TextFiles(str(tmp_path / "x.gz")))


def test_splits_of_the_python_documentation_are_disjoint():
  everything, train, held_out = PythonDocs(), PythonDocs(":95%"), PythonDocs("95%:")
  assert len(train) + len(held_out) == len(everything)
  assert sum(map(len, map(everything.__getitem__, range(len(everything))))) > 1_000_000
  assert not {train[i] for i in range(len(train))} & {held_out[i] for i in range(len(held_out))}


def test_streams_must_fit(files):
  with pytest.raises(UserError, match="3 streams must divide"):
    text(files, streams=3).train(BYTES, 4, 0)
  with pytest.raises(UserError, match="has 2 streams"):
    text(files).train(BYTES, 4, 0, np.zeros((2, 2), np.int64))


def test_a_row_of_padding_when_there_is_no_more():
  documents = [(np.arange(5), 12), (np.zeros(0, np.int32), 0)]
  for packer in (Concatenate(8), packing.FirstFitText(8)):
    row, position = packer.row(documents.__getitem__, (0, 0))
    assert row["weights"].tolist() == [1] * 4 + [0] * 4 and row["bytes"] == 12
    row, _ = packer.row(documents.__getitem__, position)
    assert row["weights"].sum() == 0 and row["bytes"] == 0


def test_a_python_without_documentation_is_reported(monkeypatch, tmp_path):
  monkeypatch.setitem(sys.modules, "pydoc_data.topics", None)
  monkeypatch.setattr(python_docs.sysconfig, "get_paths", lambda: {"stdlib": str(tmp_path)})
  python_docs.python_documentation.cache_clear()
  with pytest.raises(UserError, match="too little documentation.*configs/text.py:files=") as error:
    len(PythonDocs())
  assert "\n" not in str(error.value)
  python_docs.python_documentation.cache_clear()
