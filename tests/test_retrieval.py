"""An index of documents: chunks lose nothing, search equals plain numpy, a resumed index is the same."""

import collections
import json
import math
import re
import string

import numpy as np
import pytest
from etils import epath

from lmjax.__main__ import main
from lmjax.data.tokenizers.base import Bytes
from lmjax.inference import ask
from lmjax.inference.chunks import Chunk, chunks_of, counter
from lmjax.inference.indexing import Builder
from lmjax.inference.retrieval import Hit, Index, Settings, fuse, open_encoder
from lmjax.utils.bm25 import words
from lmjax.utils.errors import UserError
from tests.storage.huggingface_folders import write_classifier, write_model

pytest.importorskip("faiss", reason="needs pip install -e '.[retrieval]'")
LETTERS = [
  "[PAD]",
  "[UNK]",
  "[CLS]",
  "[SEP]",
  "[MASK]",
  *string.ascii_lowercase[:22],
  *(f"##{c}" for c in "abcdefghijk"),
]
TOPICS = ("a bad cab", "dead ed", "a high hill", "jig jag", "log in me", "pop up", "rust")


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
  folder = tmp_path_factory.mktemp("encoder")
  write_model(folder / "bert", "bert")
  (folder / "bert" / "vocab.txt").write_text("\n".join(LETTERS) + "\n")
  return open_encoder(str(folder / "bert")), str(folder / "bert")


def write_documents(folder, seed=0, count=9):
  rng = np.random.default_rng(seed)
  folder.mkdir(exist_ok=True)
  for i in range(count):
    paragraphs = (" ".join(rng.choice(TOPICS, rng.integers(1, 5))) + "." for _ in range(rng.integers(1, 6)))
    (folder / f"{i}.txt").write_text("\n\n".join(paragraphs) + f"\n\nrust {i}\n")


def build(folder, documents, encoder, rows=8, **changes):
  settings = Settings(encoder[1], encoder[0].checksum, 12)
  builder = Builder(epath.Path(folder), settings, encoder[0], rows)
  for name, value in changes.items():
    setattr(builder, name, value)
  *_, summary = builder.run([str(documents)])
  return summary


def rows_of(folder):
  """Returns the chunks of an index with their vectors, whatever their order."""
  index = Index(folder)
  shards = range(len(index.contents.shards))
  pairs = [(c, tuple(v)) for n in shards for c, v in zip(index.chunks(n), index.vectors(n), strict=True)]
  return sorted(pairs)


@pytest.mark.parametrize("most", [1, 3, 20, 10_000])
def test_chunks_lose_nothing_and_cut_only_what_is_too_long(most):
  rng = np.random.default_rng(most)
  for _ in range(20):
    text = "".join(rng.choice(["a", "bc", ". ", " ", "\n", "\n\n", "d! ", "\n \n", "é"], 200))
    count = counter(Bytes())
    chunks = list(chunks_of("x", text, count, most))
    assert "".join("".join(c.text.split()) for c in chunks) == "".join(text.split())
    for chunk, after in zip(chunks, [*chunks[1:], None], strict=True):
      assert chunk.text == text[chunk.start : chunk.end] and chunk.line == text.count("\n", 0, chunk.start) + 1
      assert not after or chunk.end <= after.start
      assert sum(count(re.findall(r"\S+", chunk.text))) <= max(most, 2)  # "é" has two bytes
    whole = [p.strip() for p in re.split(r"\n[ \t\r]*\n", text) if p.strip()]
    for paragraph in whole:
      assert count([paragraph])[0] > most or any(paragraph in c.text for c in chunks)


def test_search_equals_plain_numpy(encoder, tmp_path):
  write_documents(tmp_path / "documents")
  build(tmp_path / "index", tmp_path / "documents", encoder)
  index, questions = Index(tmp_path / "index"), ["a high cab", "rust 3", "xyz"]
  assert len(index.contents.shards) > 2
  vectors = np.concatenate([index.vectors(n) for n in range(len(index.contents.shards))])
  queries = encoder[0].embed_questions(questions)
  for own, scores in zip(index.by_vector(queries, 7), queries @ vectors.T, strict=True):
    np.testing.assert_allclose([s for _, s in own], np.sort(scores)[::-1][:7], atol=1e-6)
    np.testing.assert_allclose([scores[r] for r, _ in own], [s for _, s in own], atol=1e-6)

  texts = [words(index.chunk(row).text) for row in range(len(vectors))]
  mean, k1, b = np.mean([len(t) for t in texts]), 1.5, 0.75
  for question, own in zip(questions, index.by_words(questions, 5), strict=True):
    scores = np.zeros(len(texts))
    for word in words(question):
      having = sum(word in text for text in texts)
      idf = math.log(1 + (len(texts) - having + 0.5) / (having + 0.5))
      frequency = np.array([collections.Counter(text)[word] for text in texts])
      scores += idf * frequency / (frequency + k1 * (1 - b + b * np.array([len(t) for t in texts]) / mean))
    np.testing.assert_allclose([s for _, s in own], np.sort(scores[scores > 0])[::-1][:5], rtol=1e-5)
  (hits, *_) = index.search(questions, queries, 3)
  ranks = [[r for r, _ in lists[0]] for lists in (index.by_vector(queries), index.by_words(questions))]
  expected = {row: sum(1 / (61 + own.index(row)) for own in ranks if row in own) for row in {*ranks[0], *ranks[1]}}
  assert [hit.score for hit in hits] == pytest.approx(sorted(expected.values(), reverse=True)[:3])
  np.testing.assert_allclose([h.similarity for h in hits], [queries[0] @ vectors[h.row] for h in hits], atol=1e-6)


def test_a_resumed_index_equals_an_uninterrupted_one(encoder, tmp_path):
  write_documents(tmp_path / "documents")
  whole = build(tmp_path / "whole", tmp_path / "documents", encoder)
  stopped = Builder(epath.Path(tmp_path / "index"), Settings(encoder[1], encoder[0].checksum, 12), encoder[0], 8)
  write, calls = stopped._write, []

  def interrupted(*arguments):
    calls.append(arguments)
    if len(calls) == 3:
      raise KeyboardInterrupt
    write(*arguments)

  stopped._write = interrupted
  with pytest.raises(KeyboardInterrupt):
    list(stopped.run([str(tmp_path / "documents")]))
  (tmp_path / "index" / "000017.npy").write_bytes(b"left by a kill")
  with pytest.raises(UserError, match="is not complete"):
    Index(tmp_path / "index")
  resumed = build(tmp_path / "index", tmp_path / "documents", encoder)
  assert resumed.embedded == whole.embedded - 16 and resumed.chunks == whole.chunks
  for (one, a), (other, b) in zip(rows_of(tmp_path / "index"), rows_of(tmp_path / "whole"), strict=True):
    assert one == other
    np.testing.assert_allclose(a, b, atol=1e-6)
  assert not (tmp_path / "index" / "000017.npy").exists()


def test_only_what_has_changed_is_embedded(encoder, tmp_path):
  documents, folder = tmp_path / "documents", tmp_path / "index"
  write_documents(documents)
  first = build(folder, documents, encoder)
  before = {p.name: p.read_bytes() for p in folder.iterdir() if p.is_file()}
  assert build(folder, documents, encoder).embedded == 0
  assert {p.name: p.read_bytes() for p in folder.iterdir() if p.is_file()} == before
  (documents / "3.txt").write_text("a new hill\n")
  (documents / "5.txt").unlink()
  (documents / "image.txt").write_bytes(b"\x89PNG\0\0" + bytes(2000))
  changed = build(folder, documents, encoder)
  assert changed.embedded == 1 and changed.chunks < first.chunks
  assert [record.where for record in changed.skipped] == [str(documents / "image.txt")]
  build(tmp_path / "fresh", documents, encoder)
  for (one, a), (other, b) in zip(rows_of(folder), rows_of(tmp_path / "fresh"), strict=True):
    assert one == other
    np.testing.assert_allclose(a, b, atol=1e-6)


def test_the_commands(encoder, tmp_path, capsys):
  write_documents(tmp_path / "documents")
  given = ["--workdir", encoder[1], "--output", str(tmp_path / "index"), "--tokens", "12"]
  assert main(["index", "--files", str(tmp_path / "documents" / "*"), *given]) == 0
  assert "9 files" in capsys.readouterr().out
  reader = write_classifier(tmp_path / "reader", "bert", "span")
  (reader / "vocab.txt").write_text("\n".join(LETTERS) + "\n")
  question = ["ask", "--index", str(tmp_path / "index"), "a high hill", "--threshold", "0", "--top", "2"]
  assert main([*question, "--json"]) == 0
  found = json.loads(capsys.readouterr().out)
  assert found["answer"] is None and [source["hit"] for source in found["sources"]] == [1, 2]
  text = (epath.Path(found["sources"][0]["file"])).read_text()
  place = found["sources"][0]
  assert "high hill" in text[place["start"] : place["end"]]
  assert text.count("\n", 0, place["start"]) + 1 == place["line"]
  assert main([*question, "--workdir", str(reader)]) == 0
  capsys.readouterr()
  assert main(["ask", "--index", str(tmp_path / "index"), "a high hill", "--threshold", "1"]) == 0
  assert capsys.readouterr().out == "not in these documents\n"
  other = ["--output", str(tmp_path / "documents"), "--tokens", "12"]
  for arguments, message in (
    ([*question, "--encoder", str(reader)], "is not the encoder of"),
    (["index", "--files", str(tmp_path / "documents"), *given[:-1], "13"], "has chunks of 12 tokens, not 13"),
    (["index", "--files", "x", "--workdir", str(reader), *given[2:]], "another encoder"),
    (["index", "--files", "x", "--workdir", encoder[1], *other], "not an index"),
    (["ask", "--index", str(tmp_path), "x"], "is not an index"),
    ([*question, "--workdir", encoder[1]], "cannot read"),
  ):
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1, error


def test_documents_that_agree_are_cited_together():
  class Predictor:
    def __call__(self, texts):
      answers = (("Vienna", 1.0), ("Graz", 1.4), ("", -3.0), ("the Vienna", 1.2))
      return [{"answer": a, "margin": m, "start": t.other.find(a)} for t, (a, m) in zip(texts, answers, strict=True)]

  texts = ("It is\nVienna.", "In Graz, say some.", "Who knows?", "It is the Vienna")
  hits = [Hit(i, Chunk(f"{i}.txt", 10, 100, 100 + len(t), t), 0.5, 0.1) for i, t in enumerate(texts)]
  found = ask.answer("Where?", hits, ask.Extractor(Predictor()))
  assert found.text == "the Vienna" and [c.hit for c in found.citations] == [3, 0]
  assert found.citations[1] == ask.Citation(0, 11, 106, 112)
  assert ask.answer("Where?", hits, ask.Extractor(Predictor()), 0.6) == ask.Answer("")
  assert fuse([[1, 2], [2]]) == [(2, 1 / 62 + 1 / 61), (1, 1 / 61)]
