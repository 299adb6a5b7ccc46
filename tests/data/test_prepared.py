"""Prepared data: the same for any number of workers, complete or refused, and read back exactly."""

import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from lmjax.__main__ import main
from lmjax.data.objectives.causal import Text
from lmjax.data.sources import write_shards
from lmjax.data.sources.base import BadRecord
from lmjax.data.sources.shards import Prepared, check_sums, read_index
from lmjax.data.sources.text import TextFiles
from lmjax.data.sources.write_shards import Preparation
from lmjax.data.tokenizers import registry
from lmjax.data.tokenizers.registry import TokenizerConfig
from lmjax.utils.errors import UserError
from tests.conftest import ROOT

BYTES = registry.Bytes()


def no_q(text: str) -> bool:
  return "q" not in text


@pytest.fixture
def source(tmp_path):
  """Three hundred lines, one in ten the same as another."""
  rng = np.random.default_rng(0)
  lines = ["".join(chr(97 + w) for w in rng.integers(0, 26, rng.integers(5, 80))) for _ in range(300)]
  lines[10::10] = lines[5:300:10][: len(lines[10::10])]
  (tmp_path / "lines.txt").write_text("\n".join(lines) + "\n")
  return TextFiles(str(tmp_path / "lines.txt"), document="line")


def run(work, folder, workers=0):
  list(work.run(folder, workers))
  return {path.name: path.read_bytes() for path in sorted(folder.iterdir()) if path.is_file()}


def test_any_number_of_workers_writes_the_same(source, tmp_path):
  work = Preparation(source, BYTES, validation=0.2, deduplicate=True, keep=no_q, shard=500)
  alone, two = run(work, tmp_path / "alone"), run(work, tmp_path / "two", workers=2)
  assert alone == two
  assert len([name for name in alone if name.startswith("train")]) > 2
  assert not [name for name in alone if "partial" in name or "keys" in name or "unfinished" in name]


def test_what_is_read_back_is_what_was_kept(source, tmp_path):
  work = Preparation(source, BYTES, validation=0.2, deduplicate=True, keep=no_q, shard=2000)
  run(work, tmp_path / "data")
  train, held_out = Prepared(str(tmp_path / "data")), Prepared(str(tmp_path / "data"), "validation")
  texts = [[BYTES.decode(part[i].ids) for i in range(len(part))] for part in (train, held_out)]
  kept = dict.fromkeys(text for text in (source[i] for i in range(300)) if no_q(text))
  assert sorted(texts[0] + texts[1]) == sorted(kept) and not set(texts[0]) & set(texts[1])
  assert texts[0] == [text for text in kept if text in set(texts[0])], "the order is the source's"
  assert 0.1 < len(held_out) / len(kept) < 0.3
  counts = read_index(tmp_path / "data")["counts"]
  assert counts["read"] == 300 and counts["documents"] == len(kept)
  assert counts["tokens"] == counts["bytes"] == sum(map(len, kept))
  assert counts["read"] == counts["documents"] + counts["duplicates"] + counts["filtered"]
  check_sums(tmp_path / "data")


def test_training_on_prepared_text_is_training_on_the_text(source, tmp_path):
  """The same documents in the same order give the same rows and bytes."""
  run(Preparation(source, BYTES), tmp_path / "data")
  ready = Prepared(str(tmp_path / "data"))
  plain = Text(source, source, 32, TokenizerConfig("bytes")).train(BYTES, 4, 0)
  other = Text(ready, ready, 32, TokenizerConfig("bytes")).train(BYTES, 4, 0)
  for _ in range(20):
    first, second = next(plain), next(other)
    assert all(np.array_equal(first[key], second[key]) for key in first)
  plain.close()
  other.close()
  first, second = (Text(s, s, 32, TokenizerConfig("bytes")).validate(BYTES, 4) for s in (source, ready))
  assert sum(b["bytes"].sum() for b in first) == sum(b["bytes"].sum() for b in second)


def test_another_tokenizer_is_refused(source, tmp_path):
  run(Preparation(source, BYTES), tmp_path / "data")
  ready = Prepared(str(tmp_path / "data"))
  other = registry.train("characters", ["abc"], 0)
  for make in (lambda text: text.train(other, 4, 0), lambda text: text.validate(other, 4)):
    with pytest.raises(UserError, match="come from another tokenizer"):
      make(Text(ready, ready, 32))


def test_a_kill_loses_nothing(source, tmp_path, monkeypatch):
  work = Preparation(source, BYTES, validation=0.2, deduplicate=True, shard=1500)
  whole = run(work, tmp_path / "whole")
  for chunks, _ in enumerate(work.run(tmp_path / "cut"), 1):
    if chunks == 40:
      break  # as a kill would: nothing is closed
  with pytest.raises(UserError, match="not completely prepared"):
    len(Prepared(str(tmp_path / "cut")))
  began = []
  encode = Preparation.encode
  monkeypatch.setattr(Preparation, "encode", lambda self, first: (began.append(first), encode(self, first))[1])
  assert run(work, tmp_path / "cut") == whole
  assert 0 < began[0] <= 160, "it resumes after the last complete shard"
  with pytest.raises(UserError, match="part of other data"):
    list(work.run(tmp_path / "other"))
    (tmp_path / "other" / "index.json").rename(tmp_path / "away")
    (tmp_path / "other" / "unfinished.jsonl").write_text("{}\n")
    list(work.run(tmp_path / "other"))


def test_sigkill_and_the_same_command(tmp_path):
  lines = [f"line {i} " + "word " * 400 for i in range(3000)]
  (tmp_path / "a.txt").write_text("\n".join(lines))
  command = [
    sys.executable, "-m", "lmjax", "prepare", "--files", str(tmp_path / "a.txt"), "--document", "line",
    "--algorithm", "characters", "--shard_megabytes", "1", "--workers", "1",
    "--clean", "lmjax.data.sources.text:gutenberg_body", "--output",
  ]  # fmt: skip
  options = dict(cwd=ROOT, env=os.environ | {"JAX_PLATFORMS": "cpu"}, capture_output=True, text=True, timeout=120)
  assert subprocess.run([*command, str(tmp_path / "whole")], **options).returncode == 0
  process = subprocess.Popen([*command, str(tmp_path / "killed")], cwd=ROOT, stdout=subprocess.DEVNULL)
  state, deadline = tmp_path / "killed" / "unfinished.jsonl", time.time() + 60
  while time.time() < deadline and not (state.exists() and state.read_text().count("\n") > 2):
    time.sleep(0.005)
  process.send_signal(signal.SIGKILL)
  process.wait()
  assert not (tmp_path / "killed" / "index.json").exists()
  again = subprocess.run([*command, str(tmp_path / "killed")], **options)
  assert again.returncode == 0, again.stderr
  for path in (tmp_path / "whole").glob("*.*"):
    assert path.read_bytes() == (tmp_path / "killed" / path.name).read_bytes(), path.name
  assert "prepared already" in subprocess.run([*command, str(tmp_path / "killed")], **options).stdout


def corrupt(folder, kind):
  shard = sorted(folder.glob("train*.array_record"))[0]
  if kind == "missing":
    shard.unlink()
  elif kind == "truncated":
    shard.write_bytes(shard.read_bytes()[:-100])
  elif kind == "index":
    (folder / "index.json").write_text('{"version": ')
  elif kind == "version":
    (folder / "index.json").write_text('{"version": 99}')
  elif kind == "nothing":
    (folder / "index.json").unlink()


@pytest.mark.parametrize(
  "kind, words",
  [
    ("missing", "shard .*train-00000.* is missing"),
    ("truncated", "shard .*train-00000.* truncated"),
    ("index", "index.json is corrupt"),
    ("version", "version 99"),
    ("nothing", "is not prepared data"),
  ],
)
def test_corruption_is_named(source, tmp_path, kind, words):
  run(Preparation(source, BYTES), tmp_path / "data")
  corrupt(tmp_path / "data", kind)
  with pytest.raises(UserError, match=words):
    len(Prepared(str(tmp_path / "data")))


def test_a_wrong_byte_is_a_skipped_record_and_fails_the_checksum(source, tmp_path):
  run(Preparation(source, BYTES), tmp_path / "data")
  shard = next((tmp_path / "data").glob("train*"))
  content = bytearray(shard.read_bytes())
  content[content.index(np.array(BYTES.encode(source[152]), "<u2").tobytes()) + 2] ^= 255
  shard.write_bytes(content)
  ready = Prepared(str(tmp_path / "data"))
  skipped = [record for record in map(ready.__getitem__, range(len(ready))) if isinstance(record, BadRecord)]
  assert [record.where.rpartition("/")[2] for record in skipped] == ["train-00000.array_record: record 152"]
  with pytest.raises(UserError, match="train-00000.*SHA-256"):
    check_sums(tmp_path / "data")


def test_malformed_input_is_counted_or_refused(tmp_path, capsys):
  lines = [json.dumps({"text": f"good {i}"}) for i in range(400)]
  lines[7], lines[200] = "[1, 2]", '{"body": 1}'
  (tmp_path / "few.jsonl").write_text("\n".join(lines))
  lines[::50] = ["no json"] * 8
  (tmp_path / "many.jsonl").write_text("\n".join(lines))
  (tmp_path / "empty.txt").write_text("")
  (tmp_path / "large.txt").write_text("x" * 50_000_000)
  common = ["--algorithm", "bytes", "--workers", "0", "--output"]
  assert main(["prepare", "--files", str(tmp_path / "few.jsonl"), *common, str(tmp_path / "few")]) == 0
  index = read_index(tmp_path / "few")
  assert index["counts"]["skipped"] == 2 and "few.jsonl:8: is a JSON list" in index["skipped"][0]
  for name, words in (
    ("many", "more than 1 %"),
    ("empty", "is empty"),
    ("large", "none of the 1 records read"),
    ("absent", "no file matches"),
  ):
    assert main(["prepare", "--files", f"{tmp_path / name}.*", *common, str(tmp_path / f"{name}_out")]) == 2
    message = capsys.readouterr().err
    assert words in message and message.count("\n") == 1, message
    assert not (tmp_path / f"{name}_out" / "index.json").exists()


def test_a_full_disk_is_reported_and_the_same_command_resumes(tmp_path):
  (tmp_path / "a.txt").write_text("".join(f"{i} " + "abc " * 100 + "\n" for i in range(6000)))
  command = (
    f"{sys.executable} -m lmjax prepare --files {tmp_path}/a.txt --document line --algorithm bytes --workers 0 "
    f"--shard_megabytes 1 --output {tmp_path}/out"
  )
  options = dict(cwd=ROOT, env=os.environ | {"JAX_PLATFORMS": "cpu"}, capture_output=True, text=True, timeout=120)
  full = subprocess.run(["bash", "-c", f"ulimit -f 600; {command}"], **options)
  assert full.returncode == 2 and "cannot be written" in full.stderr and full.stderr.count("\n") == 1, full.stderr
  assert subprocess.run(["bash", "-c", command], **options).returncode == 0
  check_sums(tmp_path / "out")


def test_inspecting(source, tmp_path, capsys):
  run(Preparation(source, BYTES), tmp_path / "data")
  assert main(["prepare", "--inspect", str(tmp_path / "data"), "--rows", "1"]) == 0
  output = capsys.readouterr().out
  assert all(words in output for words in ("checksums match", "segments", "<end>", "300 documents"))
  assert (tmp_path / "data" / "lengths.png").stat().st_size > 1000
  for config in (f"configs/text.py:files={source.files},debug", "configs/bert.py:debug"):
    assert main(["prepare", "--inspect", config, "--rows", "1"]) == 0


def test_chunks_of_a_small_corpus_are_small():
  class Few:
    def __len__(self):
      return 20

  assert Preparation(Few(), BYTES).chunk == 1 and write_shards.CHUNK == 256
