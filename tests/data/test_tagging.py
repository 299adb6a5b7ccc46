"""Tagged sentences: the CoNLL reader, rows in which a word's first token carries its tag, and the F1 of entities."""

import numpy as np
import pytest
from seqeval.metrics import f1_score

from lmjax.data.objectives.tagging import Tagging
from lmjax.data.sources.base import BadRecord
from lmjax.data.sources.conll import Conll
from lmjax.data.sources.examples import Tagged
from lmjax.data.tokenizers.base import Bytes
from lmjax.data.tokenizers.registry import TokenizerConfig
from lmjax.evals.entity_f1 import count, f1, tags_of

SENTENCES = "-DOCSTART- O\n\nAnna\tB-PER\nsaw\tO\nNew\tB-LOC\nYork\tI-LOC\n\n\nno\tO\n\n"


def conll(tmp_path, content, name="a.conll", **options):
  (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
  return Conll(str(tmp_path / name), **options)


def test_sentences_end_at_blank_lines(tmp_path):
  source = conll(tmp_path, SENTENCES)
  assert [source[i] for i in range(len(source))] == [
    Tagged(("Anna", "saw", "New", "York"), ("B-PER", "O", "B-LOC", "I-LOC"), f"{tmp_path}/a.conll:3"),
    Tagged(("no",), ("O",), f"{tmp_path}/a.conll:9"),
  ]
  columns = conll(tmp_path, "EU NNP B-ORG\r\nrejects VBZ O\r\n", "b.conll", tag=1)
  assert columns[0] == Tagged(("EU", "rejects"), ("NNP", "VBZ"), f"{tmp_path}/b.conll:1")


@pytest.mark.parametrize("line", [b"alone\n", b"a\tO\tx\n", b"\xff\tO\n", b"\tO\n", b"a\t\n"])
def test_a_malformed_sentence_is_named(tmp_path, line):
  source = conll(tmp_path, b"x\tO\n\ny\tO\n" + line + b"\nz\tO\n")
  first, bad, last = (source[i] for i in range(len(source)))
  assert first.words == ("x",) and last.words == ("z",)
  assert isinstance(bad, BadRecord) and bad.where == f"{tmp_path}/a.conll:4"


def test_the_first_token_of_a_word_carries_its_tag(tmp_path):
  source = conll(tmp_path, SENTENCES)
  data = Tagging(source, source, 10, TokenizerConfig("bytes"))
  assert data.learned() == {"labels": ("O", "B-LOC", "B-PER", "I-LOC")}
  data = Tagging(source, source, 10, TokenizerConfig("bytes"), labels=data.learned()["labels"])
  (batch,) = data.validate(Bytes(), 2)
  assert bytes(batch["inputs"][0, 1:9].astype(np.uint8)) == b"AnnasawN"  # [CLS] ... [SEP], and the rest is cut off
  assert batch["weights"][0].tolist() == [0, 1, 0, 0, 0, 1, 0, 0, 1, 0] and batch["tags"][0, [1, 5, 8]].tolist() == [
    2,
    0,
    1,
  ]
  assert data.arrangement(Bytes()).words(source[0].words)[1] == [1, 5, 8, -1]
  other = conll(tmp_path, "x\tB-ORG\n\ny\tO\n", "dev.conll")
  (batch,) = Tagging(source, other, 10, TokenizerConfig("bytes"), labels=data.labels).validate(Bytes(), 1)
  assert batch["inputs"][0, 1] == ord("y")


def test_the_f1_of_entities_is_seqeval_s():
  rng, tags = np.random.default_rng(0), ["O", "O", "B-A", "I-A", "B-B", "I-B"]
  true = [[tags[i] for i in rng.integers(0, 6, n)] for n in rng.integers(1, 12, 60)]
  predicted = [[t if rng.random() < 0.7 else tags[int(rng.integers(0, 6))] for t in row] for row in true]
  counts = np.array([count(tuple(a), b) for a, b in zip(true, predicted, strict=True)])
  values = f1(counts, 200)
  np.testing.assert_allclose(values["f1"], f1_score(true, predicted))
  assert values["f1_low"] < values["f1"] < values["f1_high"]
  assert tags_of(np.array([3, 1, 2]), [1, -1, 2], ("O", "x", "y", "z")) == ["x", "O", "y"]
