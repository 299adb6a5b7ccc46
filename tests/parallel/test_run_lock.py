"""One run per folder: the lock of a local folder, and the lease of a remote one."""

import errno
import fcntl
import json
import os
import signal
import subprocess
import sys
import threading

import pytest

from lmjax.parallel import lease, run_lock
from lmjax.parallel.lease import Lease, ObjectStore
from lmjax.parallel.run_lock import only_run
from lmjax.utils.errors import UserError
from tests.conftest import ROOT
from tests.test_budgets import reached

HOLD = """
import sys, time
from lmjax.parallel.run_lock import only_run
with only_run(sys.argv[1]):
  print("has it", flush=True)
  time.sleep(60)
"""


def test_a_second_run_is_refused_and_told_of_the_first(tmp_path):
  folder = tmp_path / "run"
  with only_run(folder) as check:
    check()
    assert folder.is_dir()
    with pytest.raises(UserError, match="is used by another run") as error, only_run(folder):
      raise AssertionError("both have it")
    assert f"process {os.getpid()} of " in str(error.value) and "pytest" in str(error.value)
    (folder / "config.json").write_text("{}")
  with only_run(folder):
    pass
  assert {path.name for path in folder.iterdir()} == {"config.json", "run.lock"}


def test_the_lock_of_a_killed_run_is_free(tmp_path):
  process = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], cwd=ROOT, stdout=subprocess.PIPE, text=True)
  assert process.stdout.readline() == "has it\n"
  with pytest.raises(UserError, match=f"process {process.pid} of "), only_run(tmp_path):
    pass
  process.send_signal(signal.SIGKILL)
  process.communicate()
  with only_run(tmp_path):
    pass


def test_a_run_that_writes_nothing_leaves_nothing(tmp_path):
  with pytest.raises(ZeroDivisionError), only_run(tmp_path / "new"):
    raise ZeroDivisionError
  assert not (tmp_path / "new").exists()
  (tmp_path / "there").mkdir()
  with only_run(tmp_path / "there"):
    pass
  assert (tmp_path / "there").exists(), "a folder that was there stays"


def test_a_folder_that_cannot_be_written_is_refused(tmp_path):
  (tmp_path / "file").write_text("")
  (tmp_path / "taken").mkdir()
  (tmp_path / "taken" / run_lock.NAME).mkdir()
  for folder in ("file", "file/below", "taken", "n" * 300):
    with pytest.raises(UserError, match="cannot be used as a run folder"), only_run(tmp_path / folder):
      pass


def test_a_file_system_without_locks_is_used_and_said(tmp_path, monkeypatch, capsys):
  def flock(*arguments):
    raise OSError(errno.ENOLCK, "No locks available")

  monkeypatch.setattr(fcntl, "flock", flock)
  with only_run(tmp_path), only_run(tmp_path):
    pass
  assert "file system without locks (No locks available)" in capsys.readouterr().out


class FakeStore:
  """One object in memory, with generation numbers; `fail` makes the next calls fail, `lose` their answers get lost."""

  def __init__(self):
    self.content, self.generation, self.fail, self.lose = None, 0, 0, 0

  def read(self):
    self._may_fail()
    return self.content, self.generation

  def write(self, content, generation):
    self._may_fail()
    if generation != self.generation:
      return None
    self.content, self.generation = content, self.generation + 1
    if self.lose:
      self.lose -= 1
      raise ConnectionError("no answer")
    return self.generation

  def _may_fail(self):
    if self.fail:
      self.fail -= 1
      raise ConnectionError("no network")


class Clock:
  """Time that passes where something waits; `during` is called each time."""

  def __init__(self, during=lambda: None):
    self.now, self.during = 0.0, during

  def __call__(self):
    return self.now

  def wait(self, seconds):
    self.now += seconds
    self.during()


def make(store, owner="the first", clock=None, said=None):
  clock = clock or Clock()
  return Lease("gs://bucket/run", owner, store, [].append if said is None else said.append, clock, clock.wait)


@pytest.fixture(params=["fake", "memory", "file"])
def store(request, tmp_path):
  urls = {"memory": f"memory://{tmp_path.name}/run.lease", "file": f"file://{tmp_path}/run.lease"}
  return FakeStore() if request.param == "fake" else ObjectStore(urls[request.param])


def test_a_lease_is_created_renewed_and_deleted(store):
  first = make(store)
  first.acquire()
  content, generation = store.read()
  assert json.loads(content)["owner"] == "the first"
  first.check()
  assert store.read()[1] != generation
  first.release()
  assert store.read()[0] is None
  make(store, "the second").acquire()


def test_of_two_that_create_a_lease_at_once_one_gets_it(store):
  first, second = make(store), make(store, "the second")
  write = store.write
  store.write = lambda *arguments: (setattr(store, "write", write), second.acquire(), write(*arguments))[2]
  with pytest.raises(UserError, match="is used by another run .the second."):
    first.acquire()
  second.check()


def test_a_living_lease_is_not_taken(store):
  first = make(store)
  first.acquire()
  clock = Clock()
  clock.during = lambda: first.check() if clock.now % lease.RENEW == 0 else None
  with pytest.raises(UserError, match="is used by another run .the first.; .*--take_over"):
    make(store, "the second", clock).acquire()
  assert clock.now <= lease.RENEW
  first.check()


def test_a_stale_lease_is_waited_for(store):
  make(store).acquire()  # and killed
  clock, said = Clock(), []
  second = make(store, "the second", clock, said)
  second.acquire()
  assert lease.STALE <= clock.now <= lease.STALE + lease.POLL
  assert len(said) == 1 and "waits 120 s" in said[0] and "the first" in said[0]
  second.check()


def test_a_lease_that_is_released_meanwhile_is_taken_at_once(store):
  first = make(store)
  first.acquire()
  clock = Clock(first.release)
  make(store, "the second", clock).acquire()
  assert clock.now == lease.POLL


def test_a_run_whose_lease_was_taken_over_knows_it_for_ever(store):
  first, second, clock = make(store), make(store, "the second"), Clock()
  first.acquire()
  second.acquire(take_over=True)
  assert clock.now == 0
  for _ in range(2):
    with pytest.raises(UserError, match="taken over by the second; nothing more is saved"):
      first.check()
  first.release()
  second.check()
  second.release()
  with pytest.raises(UserError, match="and that run has ended"):
    first.check()


def test_a_network_that_fails_for_a_while_loses_nothing():
  store = FakeStore()
  first = make(store)
  first.acquire()
  store.fail = 1
  with pytest.raises(UserError, match="cannot be read or written: no network"):
    first.check()
  first.check()
  store.lose = 1
  with pytest.raises(UserError, match="no answer"):
    first.check()
  first.check()


def test_a_held_lease_is_renewed_in_the_background(tmp_path, monkeypatch):
  monkeypatch.setattr(lease, "RENEW", 0.01)
  renewed = threading.Event()
  check = Lease.check
  monkeypatch.setattr(Lease, "check", lambda self: (check(self), renewed.set())[0])
  with lease.lease(f"file://{tmp_path}/", "the first") as check_now:
    assert renewed.wait(20)
    check_now()
    assert (tmp_path / lease.NAME).exists()
  assert not (tmp_path / lease.NAME).exists()


def test_a_remote_folder_has_a_lease_and_a_local_one_does_not_import_it(tmp_path, monkeypatch):
  store = FakeStore()
  monkeypatch.setattr(lease, "ObjectStore", lambda url: store)
  with only_run("gs://bucket/run") as may_write:
    may_write()
    assert f"process {os.getpid()} of " in json.loads(store.content)["owner"]
    with only_run("gs://bucket/run", take_over=True), pytest.raises(UserError, match="taken over by process"):
      may_write()
  with pytest.raises(UserError, match="cannot have a lease"):
    monkeypatch.undo()
    with only_run("nothing://bucket/run"):
      pass
  assert "lease.py" not in {path.name for path in reached({"lmjax.train"})}
