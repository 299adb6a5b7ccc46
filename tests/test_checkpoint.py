"""What is kept, what a checkpoint holds, and that it is not read when it is corrupt."""

import contextlib
import json
import pathlib
import shutil
import zlib

import jax
import numpy as np
import pytest
import xxhash
from etils import epath

from lmjax import checkpoint
from lmjax.compression.base import Identity
from lmjax.optim import Optimizer
from lmjax.parallel.mesh import MeshShape
from lmjax.parallel.sharding import Layout
from lmjax.storage.run import best_step
from lmjax.tasks.causal_lm import CausalLM
from lmjax.testing import init_state, tiny_decoder
from lmjax.utils import checksums
from lmjax.utils.errors import UserError


def state(abstract=False):
  task = CausalLM(tiny_decoder(depth=1))
  layout = Layout.build(MeshShape().build(jax.devices()[:1]), "ddp")
  return init_state(task, Optimizer().build(9), Identity(), layout, 2, 8, 0, abstract=abstract)


def test_the_latest_and_the_best_are_kept_and_come_back_whole(tmp_path):
  saved = state()
  wanted = checkpoint.data_state(jax.random.key(5), np.arange(6).reshape(3, 2), 0)
  checkpoints = checkpoint.Checkpoints(tmp_path, checkpoint.CheckpointConfig(keep=2, best=1))
  for step, loss in ((1, 3.0), (2, 1.0), (3, None), (4, 2.0), (5, 2.5)):
    saved = saved.replace(step=jax.numpy.int32(step))
    checkpoints.save(step, saved, wanted, loss)
  checkpoints.close()

  again = checkpoint.Checkpoints(tmp_path)
  assert again.steps() == [2, 4, 5]
  restored, data = again.restore(state(abstract=True), checkpoint.data_state(jax.random.key(0), np.zeros((3, 2)), 0))
  again.close()
  jax.tree.map(np.testing.assert_array_equal, restored, saved)
  jax.tree.map(np.testing.assert_array_equal, data, wanted)
  params, step = checkpoint.load(tmp_path, {"params": state(abstract=True).params}, 2)
  assert step == 2
  jax.tree.map(np.testing.assert_array_equal, params["params"], saved.params)


def test_missing_checkpoints_are_refused(tmp_path):
  wanted = {"params": state(abstract=True).params}
  with pytest.raises(UserError, match="no checkpoint found in"):
    checkpoint.load(tmp_path, wanted)
  checkpoints = checkpoint.Checkpoints(tmp_path)
  checkpoints.save(1, state(), checkpoint.data_state(jax.random.key(5), np.zeros((3, 2)), 0), None)
  checkpoints.close()
  with pytest.raises(UserError, match="no step 7; it has 1"):
    checkpoint.load(tmp_path, wanted, 7)


DATA = checkpoint.data_state(jax.random.key(5), np.zeros((3, 2)), 0)
WANTED = {"params": state(abstract=True).params}


@pytest.fixture(scope="module")
def two(tmp_path_factory):
  """A run folder with the checkpoints 1 and 2, of different weights."""
  folder = tmp_path_factory.mktemp("two")
  checkpoints = checkpoint.Checkpoints(folder)
  for step in (1, 2):
    checkpoints.save(step, stepped(step), DATA, float(step))
  checkpoints.close()
  return folder


@pytest.fixture
def run(two, tmp_path):
  """A copy of it."""
  return pathlib.Path(shutil.copytree(two, tmp_path / "run"))


def newest(run):
  return checkpoint.choose(run, None, lambda folder: None)[0]


def stepped(step):
  new = state()
  return new.replace(step=jax.numpy.int32(step), params=jax.tree.map(lambda x: x + step, new.params))


def files(folder):
  return sorted(path for path in folder.rglob("*") if path.is_file())


@contextlib.contextmanager
def changed(path, content):
  """Another content of a file, for a while."""
  before = path.read_bytes()
  path.write_bytes(content)
  yield
  path.write_bytes(before)


def flipped(content, bit):
  return content[: bit // 8] + bytes([content[bit // 8] ^ (1 << bit % 8)]) + content[bit // 8 + 1 :]


def assert_corrupt(run, capsys):
  """The second of two checkpoints is refused, and left out where any will do."""
  with pytest.raises(UserError, match="/2 cannot be read"):
    checkpoint.load(run, WANTED, 2)
  params, step = checkpoint.load(run, WANTED)
  assert step == 1
  jax.tree.map(np.testing.assert_array_equal, params["params"], stepped(1).params)
  assert capsys.readouterr().err.count("checkpoints/2 is corrupt, skipped") == 1


def test_every_flipped_bit_is_noticed(run, capsys):
  """In every file: data, metadata, manifests, metrics, commits, and the checksums themselves."""
  random = np.random.default_rng(0)
  paths = files(run / "checkpoints" / "2")
  assert {"checksums.json", "manifest.ocdbt", "metrics", "_CHECKPOINT_METADATA"} <= {path.name for path in paths}
  bits = [(path, int(random.integers(8 * path.stat().st_size))) for path in paths for _ in range(12)]
  kinds = set()  # files of content, or of one name: each kind is loaded once
  for path, bit in bits:
    kind = "d" if "d" in path.parts else path.name
    with changed(path, flipped(path.read_bytes(), bit)):
      with pytest.raises(UserError):
        checkpoint.check(epath.Path(run / "checkpoints" / "2"))
      if kind not in kinds:
        kinds.add(kind)
        assert_corrupt(run, capsys)
        if kind not in (
          "d",
          checksums.NAME,
        ):  # the latter may have a wrong checksum of an array, which is not read here
          assert checkpoint.choose(run, None, checkpoint.parameters, metadata=True)[0] == 1
          capsys.readouterr()
  assert checkpoint.load(run, WANTED)[1] == newest(run) == 2


def test_blocks_are_compared_wherever_they_are(tmp_path, monkeypatch):
  monkeypatch.setattr(checksums, "BLOCK", 1000)
  monkeypatch.setattr(checksums, "CHUNK", 300)
  for name, size in (("a", 0), ("folder/b", 1), ("folder/c", 1000), ("d", 5432)):
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_bytes(np.random.default_rng(size).bytes(size))
  folder = epath.Path(tmp_path)
  checksums.save(folder)
  sums, content = json.loads((tmp_path / checksums.NAME).read_text()), (tmp_path / "d").read_bytes()
  assert sums["d:5000"] == xxhash.xxh3_128_hexdigest(content[5000:]), "checkpoints of other versions are compared"
  assert checksums.check(folder) == 1 + 1 + 1 + 6
  assert sum(checksums.check(folder, part=(i, 4)) for i in range(4)) == 9, "hosts share the blocks"
  for bit in (0, 8 * 999, 8 * 1000, 8 * 5432 - 1):
    with changed(tmp_path / "d", flipped((tmp_path / "d").read_bytes(), bit)):
      noticed = []
      for i in range(4):
        with contextlib.suppress(UserError):
          noticed.append(checksums.check(folder, part=(i, 4)))
      assert len(noticed) == 3, "one host notices"
  for content in ((tmp_path / "d").read_bytes() + b"\0", (tmp_path / "d").read_bytes()[:-1], b""):
    with changed(tmp_path / "d", content), pytest.raises(UserError, match="d "):
      checksums.check(folder)


def test_checksums_of_older_checkpoints_are_still_compared(run, capsys):
  """A CRC-32 of each block; what is missing is added as it is now, and the rest is kept as it was."""
  folder = run / "checkpoints" / "2"
  sums = {f"{p.relative_to(folder)}:0": zlib.crc32(p.read_bytes()) for p in files(folder) if p.name != checksums.NAME}
  kept = {key: crc for key, crc in sums.items() if not key.startswith(checkpoint.COMMIT_FILES)}
  (folder / checksums.NAME).write_text(json.dumps(kept))
  checkpoint.Checkpoints(run).close()
  after = json.loads((folder / checksums.NAME).read_text())
  assert after.keys() == sums.keys() > kept.keys() and {key: after[key] for key in kept} == kept
  assert checkpoint.check(epath.Path(folder)) == len(sums)
  for path in files(folder):
    with changed(path, flipped(path.read_bytes(), 5)), pytest.raises(UserError):
      checkpoint.check(epath.Path(folder))
  for wrong in (True, None, "", [], 1.0, str(sums["metrics/metrics:0"])):
    (folder / checksums.NAME).write_text(json.dumps(sums | {"metrics/metrics:0": wrong}))
    with pytest.raises(UserError, match="metrics/metrics has changed"):
      checkpoint.check(epath.Path(folder))
  (folder / checksums.NAME).write_text(json.dumps(sums))
  largest = max(files(folder), key=lambda path: path.stat().st_size)
  largest.write_bytes(flipped(largest.read_bytes(), 9))
  assert_corrupt(run, capsys)


def test_missing_and_added_files_are_corruption(run, capsys):
  for path in files(run / "checkpoints" / "2"):
    content = path.read_bytes()
    path.unlink()
    with pytest.raises(UserError):
      checkpoint.check(epath.Path(run / "checkpoints" / "2"))
    path.write_bytes(content)
  (run / "checkpoints" / "2" / "state" / "d" / "more").write_text("")
  assert_corrupt(run, capsys)


def test_a_checkpoint_of_an_older_version_has_no_checksums_and_is_read(run):
  (run / "checkpoints" / "2" / "checksums.json").unlink()
  (run / "checkpoints" / "2" / "metrics" / "metrics").write_text('{"loss": 2.0}')
  assert checkpoint.load(run, WANTED)[1] == 2
  checkpoints = checkpoint.Checkpoints(run)
  assert int(checkpoints.restore(state(abstract=True), DATA)[0].step) == 2
  checkpoints.close()
  assert not (run / "checkpoints" / "2" / "checksums.json").exists(), "what was not known is not vouched for"


def test_a_corrupt_checkpoint_is_moved_aside_and_does_not_count_as_one_of_the_latest(run):
  path = next(path for path in files(run / "checkpoints" / "2") if path.parent.name == "d")
  path.write_bytes(flipped(path.read_bytes(), 77))
  said = []
  checkpoints = checkpoint.Checkpoints(run, checkpoint.CheckpointConfig(keep=1, best=0), said.append)
  restored, _ = checkpoints.restore(state(abstract=True), DATA)
  jax.tree.map(np.testing.assert_array_equal, restored.params, stepped(1).params)
  assert len(said) == 1 and "2 is corrupt, moved to" in said[0] and path.name in said[0]
  assert checkpoints.steps() == [1] and (run / "corrupt" / "2").exists()
  checkpoints.save(2, stepped(2), DATA, None)
  checkpoints.close()
  assert checkpoints.steps() == [2] and newest(run) == 2


def test_checkpoints_that_a_running_run_removes_meanwhile_are_not_the_last_word(run):
  def read(folder):
    if folder.name == "2":
      (run / "checkpoints" / "1").rename(run / "checkpoints" / "3")
      shutil.rmtree(run / "checkpoints" / "2")
    return list(folder.iterdir())

  assert checkpoint.choose(run, None, read)[0] == 3


def test_metrics_that_changed_do_not_choose_thebest_step(run):
  assert best_step(run) == 1
  path = run / "checkpoints" / "1" / "metrics" / "metrics"
  path.write_text(path.read_text().replace("1.0", "9.0"))
  with pytest.raises(UserError, match="the best is not known: .*metrics/metrics has changed"):
    best_step(run)


@pytest.mark.parametrize(
  "metrics", ["5", "[]", "{", '{"checksums": 1}', '{"loss": null}', '{"loss": "2"}', '{"loss": NaN}', '{"loss": true}']
)
def test_metrics_that_are_none_are_corrupt(run, metrics, capsys):
  """Of a checkpoint without checksums, as an older version or somebody else writes it."""
  (run / "checkpoints" / "2" / "checksums.json").unlink()
  (run / "checkpoints" / "2" / "metrics" / "metrics").write_text(metrics)
  with pytest.raises(UserError, match="the best is not known"):
    best_step(run)
  assert newest(run) in (1, 2) and "Traceback" not in capsys.readouterr().err
  said = []
  checkpoints = checkpoint.Checkpoints(run, say=said.append)
  assert checkpoints.steps() == [1] and "2 is corrupt, moved to" in said[0]
  checkpoints.close()


@pytest.mark.parametrize("killed", ["before the checksums", "before the commit", "after the commit"])
def test_a_kill_around_the_commit_loses_and_accepts_nothing(run, killed, monkeypatch):
  checkpoints = checkpoint.Checkpoints(run)
  if killed == "before the checksums":
    monkeypatch.setattr(checksums, "save", killing)
  if killed == "before the commit":
    monkeypatch.setattr(checkpoint.Checkpoints, "_before_commit", killing)
  if killed == "after the commit":
    monkeypatch.setattr(checkpoint.Checkpoints, "_finish", killing)
  checkpoints.save(3, stepped(3), DATA, None)
  with pytest.raises(UserError, match="killed"):
    checkpoints.close()
  monkeypatch.undo()
  last = 3 if killed == "after the commit" else 2
  assert newest(run) == last
  again = checkpoint.Checkpoints(run)
  assert int(again.restore(state(abstract=True), DATA)[0].step) == last
  again.close()
  for path in files(run / "checkpoints" / str(last)):
    with changed(path, flipped(path.read_bytes(), 3)), pytest.raises(UserError):
      checkpoint.check(epath.Path(run / "checkpoints" / str(last)))


def killing(*arguments):
  raise RuntimeError("killed")


def test_a_run_that_lost_its_folder_saves_nothing(run):
  """It may lose it before a save, or while one is written."""
  allowed = iter([None, None, None, UserError("lost"), UserError("lost")])

  def may_write():
    if error := next(allowed):
      raise error

  checkpoints = checkpoint.Checkpoints(run, may_write=may_write)
  checkpoints.save(3, stepped(3), DATA, None)
  checkpoints.save(4, stepped(4), DATA, None)
  with pytest.raises(UserError, match="lost"):
    checkpoints.wait()
  with pytest.raises(UserError, match="lost"):
    checkpoints.save(5, stepped(5), DATA, None)
  assert newest(run) == 3
