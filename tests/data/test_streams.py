"""Order and packing: a pure function of seed, step and streams, for any workers and hosts, to the id."""

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from absl import flags

from lmjax.__main__ import main
from lmjax.data import packing
from lmjax.data.objectives.causal import Text
from lmjax.data.sources.base import BadRecord
from lmjax.data.sources.records import TFDS, JsonLines, Parquet
from lmjax.data.sources.text import TextFiles
from lmjax.data.streams import Mixture, Part, proportions, schedule
from lmjax.data.tokenizers import registry
from lmjax.data.tokenizers.registry import TokenizerConfig
from lmjax.utils.errors import UserError

flags.FLAGS.mark_as_parsed()
BYTES = registry.Bytes()


class Numbers:
  """Documents that are their own number."""

  def __init__(self, count, mark):
    self.count, self.mark = count, mark

  def __len__(self):
    return self.count

  def __getitem__(self, index):
    return f"{self.mark}{index:05}"


def mixture():
  return Mixture({"a": Part(Numbers(50, "a"), 3), "b": Part(Numbers(7, "b"), 1)})


def documents(batches, count):
  """Returns the documents of each row; a row is exactly one document of 6 characters."""
  taken = [next(batches) for _ in range(count)]
  batches.close()
  return [[BYTES.decode(row) for row in b["inputs"]] for b in taken]


def test_proportions_and_schedule():
  assert proportions([3, 1]).tolist() == [3, 1] and proportions([0.7, 0.2, 0.1]).tolist() == [7, 2, 1]
  assert proportions([1 / 3, 2 / 3]).sum() == 10_000
  order = schedule(np.array([3, 1]))
  assert sorted(order) == [0, 0, 0, 1]
  for start in range(100):
    many = schedule(proportions([0.5, 0.3, 0.2]))
    window = np.resize(np.roll(many, -start), 10)
    assert np.bincount(window).tolist() == [5, 3, 2]


def test_every_stream_of_a_mixture_keeps_the_proportions_and_reads_all_documents():
  text = Text(mixture(), mixture(), 7, TokenizerConfig("bytes"))
  rows = documents(text.train(BYTES, 4, 0), 400)
  for stream in range(4):
    marks = [row[stream][0] for row in rows]
    for start in range(0, 396, 4):
      assert marks[start : start + 4].count("a") == 3
  for mark, count in (("a", 50), ("b", 7)):
    flat = [document for row in rows for document in row if document[0] == mark]
    assert len(set(flat)) == count
    times = [flat.count(document) for document in set(flat)]
    assert max(times) - min(times) <= 4, "epochs, not draws with replacement"


def test_a_mixture_resumes(tmp_path):
  text = Text(mixture(), mixture(), 7, TokenizerConfig("bytes"))
  whole = documents(text.train(BYTES, 4, 0), 20)
  first = text.train(BYTES, 4, 0)
  for _ in range(9):
    next(first)
  first.close()
  assert documents(text.train(BYTES, 4, 0, first.positions), 11) == whole[9:]


def test_a_new_version_is_another_order():
  old, new = (Text(mixture(), mixture(), 7, TokenizerConfig("bytes"), version=v) for v in (0, 1))
  assert documents(old.train(BYTES, 4, 0), 5) != documents(new.train(BYTES, 4, 0), 5)


def test_mixtures_that_cannot_be():
  for parts in ({}, {"a": Part(Numbers(1, "a"), 0.0)}):
    with pytest.raises(ValueError, match="above 0"):
      Mixture(parts)
  with pytest.raises(ValueError, match="weight of 'b'"):
    Mixture({"a": Part(Numbers(1, "a"), 1e6), "b": Part(Numbers(1, "b"), 1.0)})


def as_hosts(count, text, steps, positions=None):
  """Returns the concatenated batches of several hosts, and the positions of all streams."""
  by_host, after = [], text.start(8)
  for host in range(count):
    batches = text.train(BYTES, 8, 3, positions, range(8 // count * host, 8 // count * (host + 1)))
    by_host.append([next(batches) for _ in range(steps)])
    after[batches.streams] = batches.positions[batches.streams]
    batches.close()
  return [{k: np.concatenate([b[i][k] for b in by_host]) for k in by_host[0][0]} for i in range(steps)], after


@pytest.mark.parametrize("mode", ["concatenate", pytest.param("first_fit", marks=pytest.mark.slow)])
def test_the_same_records_for_any_workers_and_hosts_and_after_any_change_of_them(data, mode):
  """On real text, to the id."""
  c4 = TFDS(folder=str(data / "tfds_c4_minimal" / "c4" / "en" / "3.1.0"))
  books = TextFiles(str(data / "lm_tinyshakespeare" / "*.txt"), chunk_bytes=2000)
  mixed = Mixture({"c4": Part(c4, 0.6), "shakespeare": Part(books, 0.4)})

  def text(workers):
    return Text(mixed, mixed, 128, TokenizerConfig("bytes"), packing=mode, workers=workers)

  whole, _ = as_hosts(1, text(0), 6)
  for workers, hosts in ((4, 1), (1, 4)):
    rows, _ = as_hosts(hosts, text(workers), 6)
    assert all(np.array_equal(a[k], b[k]) for a, b in zip(whole, rows, strict=True) for k in a), (workers, hosts)
  _, positions = as_hosts(4, text(0), 2)
  rows, _ = as_hosts(2, text(1), 4, positions)
  assert all(np.array_equal(a[k], b[k]) for a, b in zip(whole[2:], rows, strict=True) for k in a)


def test_a_host_makes_whole_streams(lines):
  text = Text(lines, lines, 16, TokenizerConfig("bytes"), streams=2)
  batches = text.train(BYTES, 8, 0, rows=range(4, 8))
  assert batches.streams == [1] and len(next(batches)["inputs"]) == 4
  batches.close()
  with pytest.raises(UserError, match="all rows of a stream must be on one host"):
    text.train(BYTES, 8, 0, rows=range(2, 6))


@pytest.fixture
def lines(tmp_path):
  rng = np.random.default_rng(1)
  text = ["".join(chr(97 + w) for w in rng.integers(0, 26, rng.integers(1, 60))) for _ in range(200)]
  (tmp_path / "lines.txt").write_text("\n".join(text))
  return TextFiles(str(tmp_path / "lines.txt"), document="line")


def test_first_fit_loses_no_token_splits_none_that_fits_and_packs_tighter_than_one_a_row(lines):
  text = Text(lines, lines, 64, TokenizerConfig("bytes"), packing="first_fit")
  batches = text.validate(BYTES, 8)
  documents = []
  for b in batches:
    for row in range(8):
      segments = b["segments"][row]
      for segment in range(1, segments.max() + 1):
        here = segments == segment
        assert np.array_equal(b["positions"][row][here], np.arange(here.sum()))
        assert b["inputs"][row][here][0] == BYTES.start and b["targets"][row][here][-1] == BYTES.end
        documents.append(BYTES.decode(b["targets"][row][here]))
  assert sorted(documents) == sorted(lines[i] for i in range(200))
  assert sum(b["bytes"].sum() for b in batches) == sum(len(lines[i]) for i in range(200))
  rows = sum(len(b["inputs"]) for b in batches)
  assert rows < 0.65 * 200


def test_first_fit_splits_what_is_longer_than_a_row():
  ids = np.arange(100)
  read = [(ids, 99)].__getitem__
  packer, position, targets, text_bytes = packing.FirstFitText(16), (0, 0), [], 0
  for _ in range(7):
    row, position = packer.row(read, position)
    targets += row["targets"][row["weights"] > 0].tolist()
    text_bytes += row["bytes"]
  assert targets == ids[1:].tolist() and text_bytes == pytest.approx(99)


def test_first_fit_resumes_anywhere(lines):
  text = Text(lines, lines, 64, TokenizerConfig("bytes"), packing="first_fit")
  whole = [b for b, _ in zip(text.train(BYTES, 4, 0), range(70), strict=False)]
  for stop in (1, 33, 64):
    batches = text.train(BYTES, 4, 0)
    for _ in range(stop):
      next(batches)
    batches.close()
    again = text.train(BYTES, 4, 0, batches.positions)
    assert np.array_equal(next(again)["inputs"], whole[stop]["inputs"])
    assert 0 < again.padding < 0.5
    again.close()


def test_buckets_hold_one_document_a_row_and_pad_little(lines):
  text = Text(lines, lines, 64, TokenizerConfig("bytes"), packing="buckets", buckets=(8, 16, 32, 64))
  batches = text.train(BYTES, 4, 0)
  lengths, padding = [], []
  for _ in range(200):
    b = next(batches)
    lengths.append(b["inputs"].shape[1])
    padding.append(batches.padding)
    assert (b["segments"] <= 1).all() and lengths[-1] in (8, 16, 32, 64)
    used = b["segments"].sum(1)
    assert (used <= lengths[-1]).all() and (lengths[-1] == 8 or (used > lengths[-1] // 2).all())
  batches.close()
  assert len(set(lengths)) == 4 and np.mean(padding) < 0.3
  assert sum((b["segments"].max(1) > 0).sum() for b in text.validate(BYTES, 4)) == 200


def test_buckets_resume(lines):
  text = Text(lines, lines, 64, TokenizerConfig("bytes"), packing="buckets", buckets=(16, 64))
  whole = [b["inputs"] for b, _ in zip(text.train(BYTES, 4, 0), range(12), strict=False)]
  batches = text.train(BYTES, 4, 0)
  for _ in range(5):
    next(batches)
  batches.close()
  again = text.train(BYTES, 4, 0, batches.positions)
  assert all(np.array_equal(next(again)["inputs"], wanted) for wanted in whole[5:])
  again.close()


def test_parquet(data, tmp_path):
  table = pyarrow.table({"text": [f"row {i}" for i in range(9)] + [None], "other": range(10)})
  pyarrow.parquet.write_table(table, tmp_path / "a.parquet", row_group_size=3)
  source = Parquet(str(tmp_path / "*.parquet"))
  assert [source[i] for i in range(9)] == [f"row {i}" for i in range(9)] and isinstance(source[9], BadRecord)
  assert "a.parquet: row 0 of row group 3" in source[9].where
  assert len(Parquet(str(tmp_path / "*.parquet"), split="50%:")) == 5
  with pytest.raises(UserError, match="no column 'txt'.*'text'"):
    len(Parquet(str(tmp_path / "*.parquet"), key="txt"))
  (tmp_path / "b.parquet").write_bytes((tmp_path / "a.parquet").read_bytes()[:-20])
  with pytest.raises(UserError, match="b.parquet cannot be read"):
    len(Parquet(str(tmp_path / "b.parquet")))
  real = Parquet(str(data / "tfds_c4_minimal" / "hf" / "**" / "*.parquet"))
  assert len(real) > 100 and all(isinstance(real[i], str) for i in range(20))


def test_tfds(data, tmp_path):
  folder = data / "tfds_c4_minimal"
  source = TFDS("c4/en", folder=str(folder))
  assert len(source) == 1000 and len(TFDS("c4/en", "validation", folder=str(folder))) == 200
  assert all(isinstance(source[i], str) and len(source[i]) > 50 for i in range(20))
  for broken, words in (
    (TFDS("c4/en", "test", folder=str(folder)), "no split 'test'"),
    (TFDS("c4_wrs/en", folder=str(folder)), "no dataset 'c4_wrs/en'; did you mean 'c4"),
    (TFDS("lm1b", folder=str(tmp_path)), "lmjax prepare tfds lm1b --folder"),
  ):
    with pytest.raises(UserError, match=words):
      len(broken)
  with pytest.raises(UserError, match="no key 'body'; known: .*text"):
    TFDS("c4/en", key="body", folder=str(folder))[0]


def test_preparing_a_tfds_data_set_without_tensorflow(tmp_path, capsys):
  import tensorflow_datasets as tfds

  class TinyText(tfds.core.GeneratorBasedBuilder):
    """Five texts."""

    VERSION = tfds.core.Version("1.0.0")

    def _info(self):
      return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict({"text": tfds.features.Text()}))

    def _split_generators(self, dl_manager):
      return {"train": self._generate_examples()}

    def _generate_examples(self):
      for i in range(5):
        yield i, {"text": f"text {i}"}

  with pytest.raises(UserError, match="lmjax prepare tfds tiny_text"):
    len(TFDS("tiny_text", folder=str(tmp_path)))
  assert main(["prepare", "tfds", "tiny_text", "--folder", str(tmp_path)]) == 0
  assert "train 5" in capsys.readouterr().out
  source = TFDS("tiny_text", folder=str(tmp_path))
  assert sorted(source[i] for i in range(5)) == [f"text {i}" for i in range(5)]
  assert main(["prepare", "tfds", "tiny_txt", "--folder", str(tmp_path)]) == 2
  assert "did you mean 'tiny_text'" in capsys.readouterr().err


def test_a_truncated_shard_of_tfds_is_named(data, tmp_path):
  original = data / "tfds_c4_minimal" / "c4" / "en" / "3.1.0"
  for path in original.iterdir():
    (tmp_path / path.name).write_bytes(path.read_bytes())
  shard = next(tmp_path.glob("c4-train*"))
  shard.write_bytes(shard.read_bytes()[:1000])
  source = TFDS(folder=str(tmp_path))
  skipped = [record for record in map(source.__getitem__, range(len(source))) if isinstance(record, BadRecord)]
  assert skipped and "train:" in skipped[0].where


def test_memory_of_an_index_is_small_whatever_the_file(tmp_path):
  with open(tmp_path / "big.txt", "w") as file:
    for i in range(200_000):
      file.write(f"line {i} " + "abc " * 10 + "\n")
  source = TextFiles(str(tmp_path / "big.txt"))
  assert sum(len(source[i]) for i in range(len(source))) == (tmp_path / "big.txt").stat().st_size
  assert source._index.starts.nbytes < 10_000
  lines = JsonLines(str(tmp_path / "big.txt"))
  assert isinstance(lines[199_999], BadRecord) and lines[199_999].where.endswith(":200000")
