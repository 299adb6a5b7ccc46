"""Tokenizers: published vectors, round trips, and corrupt files."""

import json

import pytest
import sentencepiece

from lmjax.data.tokenizers import base, registry
from lmjax.data.tokenizers.subword import WordPiece
from lmjax.utils.errors import UserError

TEXTS = [
  "the cat sat on the mat.",
  "the dog; 12 naïve façades — π ≈ 3.14 🦙\n\ttabs",
  "a <|endoftext|> b",
] * 20


def test_gpt2_vectors(data):
  tokenizer = registry.load(data / "tok_gpt2")
  assert (tokenizer.size, tokenizer.end) == (50257, 50256)
  folder = data / "vectors_tokenizers"
  texts = (folder / "llamacpp_gpt-2.inp").read_text(encoding="utf-8").split("\n__ggml_vocab_test__\n")
  lines = (folder / "llamacpp_gpt-2.out").read_text().splitlines()
  assert len(texts) - 1 <= len(lines)
  for text, line in zip(texts, lines, strict=False):
    expected = [int(i) for i in line.split()]
    assert tokenizer.encode(text) == expected, repr(text)
    assert tokenizer.decode(expected) == text


def test_bert_vectors(data, tmp_path):
  tokenizer = registry.load(data / "tok_bert_uncased")
  assert (tokenizer.size, tokenizer.start, tokenizer.end, tokenizer.mask, tokenizer.padding) == (
    30522,
    101,
    102,
    103,
    0,
  )
  folder = data / "vectors_tokenizers"
  texts = (folder / "llamacpp_bert-bge.inp").read_text(encoding="utf-8").split("\n__ggml_vocab_test__\n")
  lines = (folder / "llamacpp_bert-bge.out").read_text().splitlines()
  assert len(texts) - 1 <= len(lines)
  for text, line in zip(texts, lines, strict=False):
    assert tokenizer.encode(text) == [int(i) for i in line.split()], repr(text)
  tokenizer.save(tmp_path)
  again = registry.load(tmp_path)
  assert type(again) is type(tokenizer) and base.fingerprint(again) == base.fingerprint(tokenizer)


def test_cased_and_uncased(tmp_path):
  special = list(WordPiece.SPECIAL)
  (tmp_path / "vocab.txt").write_text("\n".join([*special, "Hello", "hello", "##s"]))
  tokenizer = registry.load(tmp_path)
  assert tokenizer.encode("Hellos hello Nope") == [5, 7, 6, tokenizer.unknown]
  assert tokenizer.decode([2, 5, 7, 6, 3]) == "Hellos hello"
  (tmp_path / "tokenizer_config.json").write_text('{"do_lower_case": true}')
  assert registry.load(tmp_path).encode("Hello") == [6]
  (tmp_path / "vocab.txt").write_text("\n".join(special[:4]))
  with pytest.raises(UserError, match=r"needs \[MASK\]"):
    registry.load(tmp_path)


def test_sentencepiece_is_the_library(data):
  texts = (data / "tok_sentencepiece" / "botchan.txt").read_text(encoding="utf-8").splitlines()[:200]
  models = sorted((data / "tok_sentencepiece").glob("*.model"))
  assert len(models) == 7
  for path in models:
    processor = sentencepiece.SentencePieceProcessor(model_file=str(path))
    tokenizer = registry.load(path)
    for text in texts + TEXTS[:2]:
      ids = processor.encode(text)
      assert tokenizer.encode(text) == ids
      assert tokenizer.decode(ids) == processor.decode(ids)
    assert 0 <= tokenizer.end < tokenizer.size and 0 <= tokenizer.start < tokenizer.size


@pytest.mark.parametrize("algorithm", registry.ALGORITHMS)
def test_train_save_load_round_trip(algorithm, tmp_path):
  tokenizer = registry.train(algorithm, TEXTS, 300)
  tokenizer.save(tmp_path)
  again = registry.load(tmp_path)
  assert base.fingerprint(tokenizer) == base.fingerprint(again)
  for text in TEXTS[:3]:
    ids = again.encode(text)
    assert ids == tokenizer.encode(text) and all(0 <= i < again.size for i in ids)
    assert again.end not in ids, "text must not turn into the end of a document"
    if algorithm == "wordpiece":
      continue  # gives back words, see test_cased_and_uncased
    if algorithm in ("bpe", "bytes", "characters"):
      assert again.decode([again.start, *ids, again.end]) == text
    else:  # SentencePiece normalises white space
      assert again.decode(ids).split() == text.split()


def test_unknown_characters():
  tokenizer = registry.train("characters", ["abc"], 0)
  assert tokenizer.encode("cad") == [2, 0, 4] and tokenizer.size == 5
  assert tokenizer.decode([2, 0, 4, 3]) == "ca\ufffd"


@pytest.mark.parametrize(
  "name, text, words",
  [
    ("tokenizer.json", '{"model": ', "corrupt"),
    ("tokenizer.json", "{}", "corrupt"),
    ("tokenizer.model", "not a model", "corrupt"),
    ("characters.json", "[]", "corrupt"),
    ("notes.txt", "hello", "contains no tokenizer"),
  ],
)
def test_corrupt_files_are_named(name, text, words, tmp_path):
  (tmp_path / name).write_text(text)
  with pytest.raises(UserError, match=words) as error:
    registry.load(tmp_path)
  assert "\n" not in str(error.value) and str(tmp_path) in str(error.value)


def test_corrupt_merges(tmp_path):
  (tmp_path / "encoder.json").write_text(json.dumps({"a": 0, "b": 1, "ab": 2}))
  (tmp_path / "vocab.bpe").write_text("#version: 0.2\na b c\n")
  with pytest.raises(UserError, match="a b c"):
    registry.load(tmp_path)
  (tmp_path / "vocab.bpe").write_text("#version: 0.2\na x\n")
  with pytest.raises(UserError, match="corrupt"):
    registry.load(tmp_path)


def test_missing_path_and_tiny_size():
  with pytest.raises(UserError, match="does not exist"):
    registry.load("/nowhere/at/all")
  with pytest.raises(UserError, match="257"):
    registry.train("bpe", TEXTS, 100)
