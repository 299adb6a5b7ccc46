"""Sources and targets: span corruption is T5's and invertible, pairs are packed and truncated, rows resume."""

import gzip

import numpy as np
import pytest

from lmjax.__main__ import main
from lmjax.data.objectives.denoising import Consecutive, Denoising, MixtureOfDenoisers, PrefixLM, SpanCorruption
from lmjax.data.objectives.seq2seq import TextToText
from lmjax.data.sources.base import BadRecord
from lmjax.data.sources.pair import Pair
from lmjax.data.sources.pairs import JsonPairs, ParallelLines, PatternLines
from lmjax.data.sources.python_docs import PythonDocs
from lmjax.data.sources.text import TextFiles
from lmjax.data.streams import Mixture, Part
from lmjax.data.tokenizers import sentinels, words
from lmjax.data.tokenizers.base import Bytes
from lmjax.data.tokenizers.registry import load
from lmjax.utils.errors import UserError

SENTINELS = sentinels.Sentinels(Bytes(), 100)


def restore(source, target):
  """Returns the text of a source and a target of span corruption."""
  is_sentinel = lambda token: token >= SENTINELS.inner.size  # noqa: E731
  spans = {}
  for token in target.tolist():
    if is_sentinel(token):
      spans[token] = span = []
    else:
      span.append(token)
  return [t for token in source.tolist() for t in (spans.get(token, []) if is_sentinel(token) else [token])]


def test_512_tokens_come_with_114():
  objective = SpanCorruption()
  assert (objective.input_tokens(512), objective.target_tokens(512)) == (568, 114)


def test_sentinels_are_numbered_downwards(tmp_path):
  class Pieces:
    size, start, end = 32_000, 0, 1

  assert sentinels.Sentinels(Pieces(), 100).sentinel(0) == 32_099
  assert (
    SENTINELS.decode([*b"ab", SENTINELS.sentinel(0), *b"c", SENTINELS.sentinel(1)]) == "ab <extra_id_0> c <extra_id_1>"
  )
  assert SENTINELS.encode("<extra_id_0>") == list(b"<extra_id_0>")  # text never becomes special tokens
  SENTINELS.save(tmp_path)
  assert load(tmp_path) == SENTINELS


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("shape", [(0.15, 3.0), (0.5, 3.0), (0.15, 32.0), (0.01, 1.0)])
def test_source_and_target_together_are_the_text(seed, shape):
  rng = np.random.default_rng(seed)
  for size in (2, 3, 7, 50, int(rng.integers(60, 180))):
    ids = rng.integers(0, 256, size).astype(np.int32)
    source, target = SpanCorruption(*shape)(ids, SENTINELS, rng)
    assert restore(source, target) == ids.tolist()
    assert source[0] < 256 and source[-1] >= 257  # noise comes last, and not first


def test_spans_are_as_many_and_as_long_as_they_should(data):
  text = (data / "tok_sentencepiece" / "botchan.txt").read_bytes()
  ids, rng = np.frombuffer(text, np.uint8).astype(np.int32), np.random.default_rng(0)
  noise, lengths = np.zeros(568), []
  for i in range(400):
    window = ids[i * 568 : (i + 1) * 568]
    source, target = SpanCorruption()(window, SENTINELS, rng)
    assert restore(source, target) == window.tolist()
    assert len(source) + 1 == 512 and len(target) + 1 == 114
    cuts = np.flatnonzero(target >= 257)
    lengths += np.diff([*cuts, len(target)]).tolist()
    corrupted, position = [], 0
    for token in source:
      if token >= 257:
        size = lengths[len(lengths) - len(cuts) + (SENTINELS.size - 1 - token)] - 1
        corrupted += range(position, position + size)
        position += size
      else:
        position += 1
    noise[corrupted] += 1
  lengths = np.array(lengths) - 1
  assert lengths.min() == 1 and lengths.mean() == pytest.approx(85 / 28)
  # Of all divisions of 85 into 28 parts, C(83, 26) / C(84, 27) = 27 / 84 of the parts are 1 long.
  assert (lengths == 1).mean() == pytest.approx(27 / 84, abs=4 * (0.22 / len(lengths)) ** 0.5)
  assert noise[100:450].mean() / 400 == pytest.approx(85 / 568, abs=0.02)


def test_the_other_objectives_cut_in_two():
  ids, rng = np.arange(9), np.random.default_rng(0)
  assert [part.tolist() for part in Consecutive()(ids, SENTINELS, rng)] == [[0, 1, 2, 3, 4], [5, 6, 7, 8]]
  cuts = {len(PrefixLM()(ids, SENTINELS, rng)[0]) for _ in range(200)}
  assert cuts == set(range(1, 9))
  mixed = MixtureOfDenoisers(weights={"X": 0.0, "X2": 0.0})
  spans = [bool((mixed(ids, SENTINELS, rng)[0] >= 257).any()) for _ in range(400)]
  assert 0.4 < np.mean(spans) < 0.6  # R or S, equally often
  with pytest.raises(ValueError, match="each must name a part"):
    MixtureOfDenoisers(weights={"Y": 1.0})


@pytest.mark.parametrize("objective", [SpanCorruption(), Consecutive(), PrefixLM(), MixtureOfDenoisers()])
def test_rows_are_one_example_with_its_end_and_resume_from_a_position(objective):
  source = PythonDocs(":2%")
  settings = sentinels.SentinelTokenizerConfig(algorithm="bytes")
  data = Denoising(source, source, length=64, tokenizer=settings, objective=objective)
  tokenizer = data.make_tokenizer()
  target_length = data.shared()["target_length"]
  batches = data.train(tokenizer, 4, seed=1)
  for _ in range(3):
    batch = next(batches)
  positions, wanted = batches.positions, next(batches)
  batches.close()
  again = data.train(tokenizer, 4, seed=1, positions=positions)
  resumed = next(again)
  again.close()
  assert all(np.array_equal(wanted[key], resumed[key]) for key in wanted)
  assert batch["inputs"].shape == (4, 64) and batch["targets"].shape == (4, target_length)
  for row in range(4):
    inside = batch["weights"][row] > 0
    targets, read = batch["targets"][row][inside], batch["decoder_inputs"][row][inside]
    assert targets[-1] == tokenizer.end and read[0] == tokenizer.start and np.array_equal(read[1:], targets[:-1])
    assert batch["inputs"][row][batch["segments"][row] > 0][-1] == tokenizer.end


def test_without_sentinels_spans_are_refused():
  with pytest.raises(UserError, match="lmjax.data.tokenizers.sentinels:SentinelTokenizerConfig"):
    SpanCorruption()(np.arange(100), Bytes(), np.random.default_rng(0))


@pytest.fixture
def files(tmp_path):
  with gzip.open(tmp_path / "a.en.gz", "wt") as file:
    file.write("one\ntwo words here\nthree\nfour is a much longer line than the others are\n")
  (tmp_path / "a.de").write_text("eins\nzwei Worte\ndrei\nvier\n")
  (tmp_path / "t.tsv").write_text("a b\tc\nno tab\nd\te f\n")
  (tmp_path / "p.jsonl").write_text('{"q": "x", "a": "y"}\n{"q": 3, "a": "y"}\n')
  return tmp_path


def test_pairs_come_from_lines_patterns_and_json(files):
  lines = ParallelLines(str(files / "a.en.gz"), str(files / "a.de"), prefix="translate: ")
  assert len(lines) == 4 and lines[1] == Pair("translate: two words here", "zwei Worte")
  table = PatternLines(str(files / "t.tsv"))
  assert table[0] == Pair("a b", "c") and isinstance(table[1], BadRecord) and "t.tsv:2" in table[1].where
  records = JsonPairs(str(files / "p.jsonl"), "q", "a")
  assert records[0] == Pair("x", "y") and isinstance(records[1], BadRecord)
  (files / "short.de").write_text("eins\n")
  with pytest.raises(UserError, match="4 lines and .* has 1; parallel files need the same number"):
    len(ParallelLines(str(files / "a.en.gz"), str(files / "short.de")))


def test_pairs_are_packed_each_with_its_own_number_and_cut_to_fit(files):
  lines = ParallelLines(str(files / "a.en.gz"), str(files / "a.de"))
  data = TextToText(
    lines, lines, length=6, target_length=5, tokenizer=words.WordTokenizerConfig(split_by="spaces", size=50)
  )
  tokenizer = data.make_tokenizer()
  (batch,) = data.validate(tokenizer, 3)
  assert batch["segments"].tolist() == [[1, 1, 2, 2, 2, 2], [1, 1, 0, 0, 0, 0], [1] * 6]
  assert batch["decoder_segments"].tolist() == [[1, 1, 2, 2, 2], [1, 1, 0, 0, 0], [1, 1, 0, 0, 0]]
  assert batch["positions"][0].tolist() == [0, 1, 0, 1, 2, 3]
  assert batch["decoder_positions"][0].tolist() == [0, 1, 0, 1, 2]
  assert tokenizer.decode(batch["targets"][0]) == "eins zwei Worte"
  assert batch["decoder_inputs"][0, 2] == tokenizer.start and batch["inputs"][2, -1] == tokenizer.end
  alone = TextToText(lines, lines, length=6, tokenizer=data.tokenizer, packed=False).validate(tokenizer, 4)
  assert [int(b["segments"].max()) for b in alone] == [1] and (alone[0]["segments"][:, 0] == 1).all()


def test_tasks_are_mixed_with_their_prefixes(files):
  one = ParallelLines(str(files / "a.en.gz"), str(files / "a.de"), prefix="translate: ")
  two = PatternLines(str(files / "t.tsv"), prefix="table: ", split=":34%")
  mixture = Mixture({"one": Part(one, 1.0), "two": Part(two, 1.0)})
  data = TextToText(mixture, one, length=200, tokenizer=words.WordTokenizerConfig(size=60), packed=False)
  tokenizer = data.make_tokenizer()
  batches = data.train(tokenizer, 2, seed=0)
  seen = [tokenizer.decode(row).split()[0] for _ in range(4) for row in next(batches)["inputs"]]
  batches.close()
  assert seen.count("table") == seen.count("translate") == 4


@pytest.mark.parametrize(
  ("config", "words"),
  [
    ("t5.py:size=mini,debug", "<extra_id_0>"),
    ("scan.py:debug", "-> "),
    ("elmo.py:debug", "reverse_targets"),
    ("glue.py:debug", "token_types"),
    ("ner.py:debug", "tags"),
    ("squad.py:debug", "second"),
    ("images.py:debug", "documents"),
    ("ppo.py:debug", "documents"),
    ("kto.py:debug", "documents"),
  ],
)
def test_rows_are_printed_by_inspect(config, words, capsys):
  assert main(["prepare", "--inspect", f"configs/{config}", "--rows", "1", "--tokens", "3"]) == 0
  shown = capsys.readouterr().out
  assert words in shown and "documents" in shown


def test_text_without_pairs_is_refused(tmp_path):
  (tmp_path / "t.txt").write_text("text\n")
  source = TextFiles(str(tmp_path / "t.txt"))
  with pytest.raises(UserError, match="needs pairs"):
    TextToText(source, source, length=8).validate(Bytes(), 1)
