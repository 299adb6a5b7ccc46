"""Sentence pairs: masked tokens can be restored, the fractions are the paper's, and runs resume."""

import numpy as np
import pytest
from absl import flags

from lmjax.data.objectives.masked_lm import SentencePairs, sentences
from lmjax.data.sources.text import TextFiles, gutenberg_body
from lmjax.data.tokenizers.base import Bytes
from lmjax.data.tokenizers.registry import TokenizerConfig
from lmjax.data.tokenizers.subword import WordPiece
from lmjax.utils.errors import UserError

flags.FLAGS.mark_as_parsed()  # as `python -m lmjax` does, for worker processes


@pytest.fixture(scope="module")
def tokenizer():
  words = [f"w{i}" for i in range(60)] + ["##x", "##y"]
  return WordPiece.of([*WordPiece.SPECIAL, ".", *words], lowercase=True)


@pytest.fixture
def source(tmp_path):
  """Twenty documents of thirty numbered sentences: word d opens those of document d."""
  for d in range(20):
    lines = [f"w{d} w{20 + s} w{(d * s) % 60}xy w{s}." for s in range(30)]
    (tmp_path / f"{d:02}.txt").write_text("\n".join(lines))
  return TextFiles(str(tmp_path / "*.txt"), document="file")


def pairs(source, **changes):
  options = dict(length=64, split_by="lines", max_predictions=12) | changes
  return SentencePairs(source, source, tokenizer=TokenizerConfig("wordpiece"), **options)


def take(data, tokenizer, count, positions=None, batch=8):
  batches = data.train(tokenizer, batch, 0, positions)
  taken = [next(batches) for _ in range(count)]
  batches.close()
  return taken, batches.positions


def restored(b, row):
  """Returns A and B of a row before masking, [CLS] and [SEP] included."""
  ids = b["inputs"][row].copy()
  real = b["weights"][row] > 0
  ids[b["masked_positions"][row][real]] = b["labels"][row][real]
  size = int((b["segments"][row] > 0).sum())
  types = b["token_types"][row][:size]
  return ids[:size][types == 0], ids[:size][types == 1]


def test_rows_are_consecutive_or_random_pairs(source, tokenizer):
  start, end, random = tokenizer.start, tokenizer.end, []
  openers = {tokenizer.encode(f"w{d}")[0]: d for d in range(20)}
  dot = tokenizer.encode(".")[0]
  for b in take(pairs(source), tokenizer, 60)[0]:
    for row in range(8):
      a, other = restored(b, row)
      assert a[0] == start and a[-1] == end and other[-1] == end and start not in a[1:]
      assert (a == end).sum() == 1 and (other == end).sum() == 1 and len(a) + len(other) <= 64
      heads = [
        [openers[s[i + 1]] for i in range(len(s) - 1) if s[i] == dot and s[i + 1] in openers] for s in (a, other)
      ]
      if heads[0] and heads[1]:
        same = heads[0][-1] == heads[1][-1]
        assert same == (b["next_sentence_label"][row] == 0), "a random B is from another document"
      random.append(b["next_sentence_label"][row])
  assert 0.42 < np.mean(random) < 0.62


def test_the_fractions_of_masked_tokens(source, tokenizer):
  counts, replacements, lengths = [], [], []
  for b in take(pairs(source), tokenizer, 80)[0]:
    for row in range(8):
      size = int((b["segments"][row] > 0).sum())
      real = b["weights"][row] > 0
      positions, labels = b["masked_positions"][row][real], b["labels"][row][real]
      assert len(set(positions)) == len(positions) and (np.diff(positions) > 0).all()
      assert not set(labels) & {tokenizer.start, tokenizer.end, tokenizer.padding}
      assert len(positions) == min(12, max(1, round(0.15 * size)))
      inputs = b["inputs"][row][positions]
      replacements += np.where(inputs == tokenizer.mask, 0, np.where(inputs == labels, 2, 1)).tolist()
      counts.append(len(positions) / size)
      lengths.append(size)
  fractions = np.bincount(replacements, minlength=3) / len(replacements)
  np.testing.assert_allclose(fractions, [0.8, 0.1, 0.1], atol=0.03)
  assert 0.13 < np.mean(counts) < 0.17
  assert 0.03 < np.mean(np.array(lengths) < 40) < 0.2, "short_seq_prob is 0.1"


def test_whole_words(source, tokenizer):
  joined = {i for i in range(tokenizer.size) if tokenizer.token(i).startswith("##")}
  split = 0
  for b in take(pairs(source, whole_words=True), tokenizer, 30)[0]:
    for row in range(8):
      positions = set(b["masked_positions"][row][b["weights"][row] > 0].tolist())
      a, other = restored(b, row)
      ids = np.concatenate([a, other])
      for i in range(1, len(ids)):
        if ids[i] in joined:
          assert (i in positions) == (i - 1 in positions)
          split += i in positions
  assert split > 50


def test_masking_is_dynamic_or_the_same_in_every_epoch(source, tokenizer):
  for dynamic in (True, False):
    masked = {}
    same = []
    for b in take(pairs(source, dynamic=dynamic, next_sentence=False, short_seq_prob=0.0), tokenizer, 200, batch=4)[0]:
      for row in range(4):
        a, _ = restored(b, row)
        key = tuple(a.tolist())
        if key in masked:
          same.append(masked[key] == b["inputs"][row].tolist())
        masked[key] = b["inputs"][row].tolist()
    assert len(same) > 100 and np.mean(same) == pytest.approx(0.0 if dynamic else 1.0, abs=0.02)


def test_singles_and_the_same_document(source, tokenizer):
  for b in take(pairs(source, next_sentence=False), tokenizer, 5)[0]:
    assert "next_sentence_label" not in b and (b["token_types"] == 0).all()
  random = [b["next_sentence_label"].mean() for b in take(pairs(source, negatives="same_document"), tokenizer, 40)[0]]
  assert 0.4 < np.mean(random) < 0.65


def test_resuming_workers_and_a_single_pass(source, tokenizer):
  whole, _ = take(pairs(source), tokenizer, 9)
  _, positions = take(pairs(source), tokenizer, 4)
  rest, _ = take(pairs(source), tokenizer, 5, positions)
  split, _ = take(pairs(source, workers=2), tokenizer, 9)
  for a, b in [*zip(whole[4:], rest, strict=True), *zip(whole, split, strict=True)]:
    assert all(np.array_equal(a[key], b[key]) for key in a)
  batches = pairs(source).validate(tokenizer, 8)
  rows = sum((b["segments"][:, 0] > 0).sum() for b in batches)
  assert rows >= 20 * 30 / 16 and all(b["inputs"].shape == (8, 64) for b in batches)


def test_sentences_of_real_text(data):
  path = data / "lm_gutenberg_books"
  source = TextFiles(str(path / "Pride-and-Prejudice*"), document="file", clean=gutenberg_body)
  text_sentences = sentences(source[0])
  lengths = np.array([len(s.split()) for s in text_sentences])
  assert 4000 < len(text_sentences) < 9000 and 12 < lengths.mean() < 30
  assert "".join("".join(text_sentences).split()).startswith("".join(source[0].split())[:200])


def test_invalid_settings_are_refused(source, tokenizer):
  with pytest.raises(UserError, match="wordpiece"):
    pairs(source).train(Bytes(), 2, 0)
  for changes in (dict(split_by="words"), dict(mask_rate=1.0), dict(negatives="none"), dict(length=4)):
    with pytest.raises(ValueError):
      pairs(source, **changes)
