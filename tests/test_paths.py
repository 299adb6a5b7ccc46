"""Paths that are not local: all but Orbax's own writing goes through epath, tested on a file system in memory."""

import json

import fsspec
import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from etils import epath
from etils.epath import backend

from lmjax import checkpoint, config, experiment, logs
from lmjax.data.objectives.causal import Text
from lmjax.data.sources.base import BadRecord
from lmjax.data.sources.records import JsonLines, Parquet
from lmjax.data.sources.shards import Prepared, check_sums
from lmjax.data.sources.text import TextFiles
from lmjax.data.sources.write_shards import Preparation
from lmjax.data.tokenizers import base, registry
from lmjax.utils import checksums
from lmjax.utils.errors import UserError


@pytest.fixture
def bucket(monkeypatch):
  """A gs:// bucket in memory."""
  memory = fsspec.filesystem("memory")
  monkeypatch.setattr(type(backend.fsspec_backend), "fs", lambda self, path: memory)
  yield epath.Path("gs://bucket/folder")
  memory.store.clear()
  memory.pseudo_dirs[:] = [""]


def test_a_run_folder_elsewhere(bucket):
  tokenizer = registry.train("bpe", ["some text to learn from"] * 9, 300)
  settings = config.load("configs/quickstart.py:debug")
  experiment.check_or_save_config(settings, tokenizer, bucket / "run")
  assert experiment.load_config(str(bucket / "run")) == settings
  again = registry.load(str(bucket / "run"))
  assert base.fingerprint(again) == base.fingerprint(tokenizer)

  log = logs.Log(bucket / "run", logs.LogConfig(), 0, settings)
  for step in (1, 2, 3):
    log.write(step, {"train_loss": 1.0 / step})
  log.skipped_records([BadRecord("x:3", "is not JSON")])
  log.summary({"steps": 3})
  log.close()
  assert [line["step"] for line in logs.read_metrics(bucket / "run")] == [1, 2, 3]
  assert json.loads((bucket / "run" / "summary.json").read_text()) == {"steps": 3}
  assert (bucket / "run" / "loss.png").read_bytes().startswith(b"\x89PNG")
  assert "x:3" in (bucket / "run" / "debug.log").read_text()


def test_a_checkpoint_elsewhere(bucket, tmp_path, monkeypatch):
  """Each file has checksums there, of all its blocks; a flipped bit and a missing or added file are noticed."""
  monkeypatch.setattr(checksums, "BLOCK", 1000)
  made = {"state/d/0": 5432, "state/d/1": 1, "metrics/metrics": 20, "_METADATA": 0, "state/ocdbt.process_1/d/2": 999}
  step = bucket / "checkpoints" / "1"
  for name, size in made.items():
    (step / name).parent.mkdir(parents=True, exist_ok=True)
    (step / name).write_bytes(np.random.default_rng(size).bytes(size))
  checksums.save(step)
  assert checkpoint.check(step) == 6 + 4
  for name, size in made.items():
    content = (step / name).read_bytes()
    for changed in (content[:-1] + bytes([content[-1] ^ 4]) if size else b"1", content + b"0"):
      (step / name).write_bytes(changed)
      with pytest.raises(UserError, match=name):
        checkpoint.check(step)
    (step / name).unlink()
    with pytest.raises(UserError, match=f"{name} is missing"):
      checkpoint.check(step)
    (step / name).write_bytes(content)
  assert checkpoint.check(step) == 10
  (step / "state" / "more").write_bytes(b"")
  with pytest.raises(UserError, match="state/more is"):
    checkpoint.check(step)


def test_text_elsewhere(bucket):
  bucket.mkdir(parents=True)
  for i in range(5):
    (bucket / f"{i}.txt").write_text(f"document number {i}")
  source = TextFiles(str(bucket / "*.txt"), document="file")
  assert [source[i] for i in range(len(source))] == [f"document number {i}" for i in range(5)]
  batches = Text(source, source, 8).train(registry.Bytes(), 2, 0)
  assert np.all(next(batches)["weights"] == 1)
  batches.close()


def test_prepared_data_elsewhere(bucket, tmp_path):
  """Shards are written to a local disk, copied to a bucket, and read there; so are tables and lines."""
  rows = [f"document number {i}" for i in range(5)]
  (tmp_path / "a.jsonl").write_text("".join(json.dumps({"text": row}) + "\n" for row in rows))
  pyarrow.parquet.write_table(pyarrow.table({"text": rows}), tmp_path / "a.parquet")
  list(Preparation(JsonLines(str(tmp_path / "a.jsonl")), registry.Bytes()).run(tmp_path / "data"))
  for path in [p for p in tmp_path.rglob("*") if p.is_file()]:
    there = bucket / str(path.relative_to(tmp_path))
    there.parent.mkdir(parents=True, exist_ok=True)
    there.write_bytes(path.read_bytes())
  check_sums(bucket / "data")
  ready = Prepared(str(bucket / "data"))
  assert [registry.Bytes().decode(ready[i].ids) for i in range(5)] == rows
  assert [JsonLines(str(bucket / "*.jsonl"))[i] for i in range(5)] == rows
  assert [Parquet(str(bucket / "*.parquet"))[i] for i in range(5)] == rows
  assert registry.load(str(bucket / "data")) == registry.Bytes()
