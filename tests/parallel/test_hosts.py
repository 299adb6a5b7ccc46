"""The parts of multi-host runs that one process can test; tests/multidevice/test_hosts.py starts real ones."""

import os
import signal
import socket
import threading
import time
import types

import jax
import numpy as np
import pytest

from lmjax.parallel import hosts, processes
from lmjax.utils.errors import UserError


@pytest.fixture
def address():
  """A coordinator address; the port after it is free."""
  with socket.socket() as listener:
    listener.bind(("localhost", 0))
    port = listener.getsockname()[1]
  return f"localhost:{port - 1}"


def rendezvous(address, count, indices, timeout):
  """Returns the error message of each process, or None, and the seconds until all of them returned."""
  messages = {}

  def process(index):
    try:
      messages[index] = processes._rendezvous(address, count, index, timeout)
    except UserError as error:
      messages[index] = str(error)

  start = time.monotonic()
  threads = [threading.Thread(target=process, args=(index,)) for index in indices]
  for thread in threads:
    thread.start()
  for thread in threads:
    thread.join(30)
  return messages, time.monotonic() - start


def test_processes_meet_in_any_order(address):
  messages, seconds = rendezvous(address, 4, (3, 1, 0, 2), 20)
  assert messages == dict.fromkeys(range(4)) and seconds < 10, "without waiting for the timeout"


def test_every_process_learns_which_one_is_missing(address):
  messages, _ = rendezvous(address, 4, (0, 1), 1)
  assert set(messages) == {0, 1}
  for message in messages.values():
    assert message.startswith("hosts: 2 of 4 processes started within 1 s; missing: process 2, 3")


def test_a_missing_coordinator_is_named(address):
  messages, _ = rendezvous(address, 2, (1,), 0.5)
  assert "missing: process 0" in messages[1]


@pytest.mark.parametrize(
  "line",
  [
    b"",
    b"GET / HTTP/1.1\n",
    b"7\n",
    b"{}\n",
    b'{"process": "1"}\n',
    b'{"process": 2}\n',
    b'{"process": 0}\n',
    b'{"process": [1]}\n',
    b'{"process": true}\n',
    b"[" * 5000 + b"\n",
    b"\xff\n",
  ],
)
def test_another_client_of_the_port_does_not_count(address, line):
  host, _, port = address.rpartition(":")

  def connect():
    with socket.create_connection((host, int(port) + 1)) as connection:
      connection.sendall(line)

  errors = []
  client = threading.Timer(0.2, connect)
  late = threading.Timer(0.5, lambda: errors.append(processes._rendezvous(address, 2, 1, 20)))
  client.start()
  late.start()
  messages, _ = rendezvous(address, 2, (0,), 20)
  client.join()
  late.join()
  assert messages == {0: None} and errors == [None], "the right one came later"


def test_a_port_in_use_is_reported(address):
  with socket.create_server(("", int(address.rpartition(":")[2]) + 1)), pytest.raises(UserError, match="cannot listen"):
    processes._rendezvous(address, 2, 0, 1)


@pytest.mark.parametrize(
  "values, words",
  [
    ((None, "2", None), "not set: LMJAX_COORDINATOR, LMJAX_PROCESS;"),
    (("localhost:1", "2", "2"), "LMJAX_PROCESS below LMJAX_PROCESSES"),
    (("localhost", "2", "1"), "must be host:port"),
    (("localhost:1", "two", "1"), "LMJAX_PROCESSES=two"),
  ],
)
def test_incomplete_variables_are_refused(monkeypatch, values, words):
  for name, value in zip(processes.VARIABLES, values, strict=True):
    monkeypatch.delenv(name, raising=False)
    if value:
      monkeypatch.setenv(name, value)
  with pytest.raises(UserError, match=words):
    processes.join()


def test_variables_of_one_process_connect_nothing(monkeypatch):
  for name, value in zip(processes.VARIABLES, ("localhost:1", "1", "0"), strict=True):
    monkeypatch.setenv(name, value)
  monkeypatch.setattr(jax.distributed, "initialize", lambda **options: pytest.fail("connected"))
  processes.join()
  monkeypatch.setenv("LMJAX_TIMEOUT", "soon")
  with pytest.raises(UserError, match="number of seconds, not 'soon'"):
    processes.join()


def test_gather_takes_each_entry_from_its_owner(monkeypatch):
  values = np.array([[1, 1], [2, 2], [3, 3], [4, 4]])
  assert hosts.gather(values, [0, 2]) is values, "one process owns everything"
  other = (-values[[3, 1]], np.array([3, 1]))
  monkeypatch.setattr(jax, "process_count", lambda: 2)
  monkeypatch.setattr(
    hosts.multihost_utils,
    "process_allgather",
    lambda tree: tuple(np.stack(pair) for pair in zip(tree, other, strict=True)),
  )
  np.testing.assert_array_equal(hosts.gather(values, [0, 2]), [[1, 1], [-2, -2], [3, 3], [-4, -4]])
  assert values[1, 0] == 2, "the argument is unchanged"


def test_the_first_signal_is_recorded_and_the_second_one_acts():
  received = []
  before = signal.signal(signal.SIGTERM, lambda number, frame: received.append(number))
  outer = signal.getsignal(signal.SIGTERM)
  try:
    with hosts.Signals() as signals:
      assert signals.at(1) is None
      os.kill(os.getpid(), signal.SIGTERM)
      assert signals.at(2) == signals.received == signal.SIGTERM and not received
      os.kill(os.getpid(), signal.SIGTERM)
      assert received == [signal.SIGTERM]
    with hosts.Signals() as signals:
      assert signal.getsignal(signal.SIGTERM) is not outer and signal.getsignal(signal.SIGINT) == signals._catch
    assert signal.getsignal(signal.SIGTERM) is outer, "restored"
  finally:
    signal.signal(signal.SIGTERM, before)


def test_with_several_processes_all_stop_at_the_synchronised_step(monkeypatch):
  monkeypatch.setattr(jax, "process_count", lambda: 2)
  monkeypatch.setattr(hosts.multihost_utils, "reached_preemption_sync_point", lambda step: step == 5)
  with hosts.Signals() as signals:
    assert [signals.at(step) for step in (4, 5, 6)] == [None, signal.SIGTERM, signal.SIGTERM]


class Exited(BaseException):
  """Raised instead of leaving the process."""


@pytest.fixture
def exits(monkeypatch):
  """Returns the (message, exit code) with which the process would have exited."""
  calls = []

  def stop(message, code):
    calls.append((message, code))
    raise Exited

  monkeypatch.setattr(processes, "_stop", stop)
  return calls


@pytest.mark.parametrize(
  "error, code, words",
  [
    (UserError("config.batch: wrong"), 2, "config.batch: wrong"),
    (ValueError("broken"), 1, "broken"),
    (KeyboardInterrupt(), 1, "KeyboardInterrupt"),
    (jax.errors.JaxRuntimeError("UNAVAILABLE: Gloo read failed"), 69, "rerun the same command to resume"),
    (jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: out of memory"), 1, "RESOURCE_EXHAUSTED"),
  ],
)
def test_an_error_of_one_of_several_processes_exits_at_once(monkeypatch, exits, error, code, words):
  monkeypatch.setattr(processes, "join", lambda: None)
  with pytest.raises(type(error)), processes.joined():
    raise error
  assert not exits, "a single process raises"
  monkeypatch.setattr(jax, "process_count", lambda: 2)
  with pytest.raises(Exited), processes.joined():
    raise error
  ((message, exit_code),) = exits
  assert exit_code == code and words in message


class Store:
  """jax's key-value store, as the watching thread of a process uses it.

  beats: the heartbeats of the other processes that it reads, by round. lost: what process 0 writes, by round.
  """

  def __init__(self, own, beats, lost):
    self.own, self.beats, self.lost, self.written = own, iter(beats), iter(lost), {}

  def key_value_set(self, key, value, allow_overwrite):
    assert key in (f"lmjax/alive/{self.own}", "lmjax/lost") and allow_overwrite
    self.written.setdefault(key, []).append(value)

  def key_value_dir_get(self, key):
    assert key == "lmjax/alive" and self.own == 0, "the others do not read all heartbeats"
    return [(f"{key}/{process}", str(beat)) for process, beat in next(self.beats).items()]

  def key_value_try_get(self, key):
    if key == "lmjax/alive/0":
      assert self.own
      return str(next(self.beats, {0: len(self.written[f"lmjax/alive/{self.own}"])})[0])
    assert key == "lmjax/lost"
    if key in self.written:
      return self.written[key][-1]
    lost = next(self.lost, RuntimeError("NOT_FOUND: nobody is lost"))
    if isinstance(lost, Exception):
      raise lost
    return lost


def watch(monkeypatch, rounds, own=0, beats=(), lost=(), count=3):
  """Runs the watching thread's function for some rounds, in which the clock moves by 10 s each."""
  store, clock = Store(own, beats, lost), [0.0]

  class Leaving:
    """The event at the end of the run."""

    def wait(self, seconds):
      clock[0] += 10 if seconds == processes._interval() else 0
      return clock[0] > 10 * rounds

    def is_set(self):
      return False

  monkeypatch.setattr(processes, "_leaving", Leaving())
  monkeypatch.setattr(processes, "distributed", types.SimpleNamespace(global_state=types.SimpleNamespace(client=store)))
  time_ = types.SimpleNamespace(monotonic=lambda: clock[0], sleep=lambda seconds: None)
  monkeypatch.setattr(processes, "time", time_)
  monkeypatch.setattr(jax, "process_count", lambda: count)
  monkeypatch.setattr(jax, "process_index", lambda: own)
  processes._watch()
  return store.written


def test_a_process_with_a_heartbeat_is_not_lost(monkeypatch, exits):
  written = watch(monkeypatch, 8, beats=({1: i, 2: i} for i in range(1, 100)))
  assert not exits and written == {"lmjax/alive/0": [str(i) for i in range(1, 9)]}


@pytest.mark.parametrize("first", [{1: 1, 2: 1}, {1: 1}])
def test_processes_without_a_heartbeat_are_lost(monkeypatch, exits, first):
  """Whether it ended or never came."""
  with pytest.raises(Exited):
    watch(monkeypatch, 20, beats=[{**first, 1: i} for i in range(1, 20)])
  ((message, code),) = exits
  assert code == 69 and "lost process 2 (no heartbeat for 25 s)" in message and processes.RESUME in message


def test_several_lost_processes_are_named(monkeypatch, exits):
  with pytest.raises(Exited):
    watch(monkeypatch, 20, beats=[{1: i, 3: min(i, 2)} for i in range(1, 20)], count=4)
  assert "lost process 2 (" in exits[0][0] or "lost process 2, 3" in exits[0][0]


def test_the_others_learn_from_process_0_which_one_is_lost(monkeypatch, exits):
  with pytest.raises(Exited):
    watch(monkeypatch, 20, own=1, lost=[RuntimeError("NOT_FOUND: nobody")] * 3 + ["2"])
  ((message, code),) = exits
  assert code == 69 and "lost process 2 (no heartbeat for 25 s)" in message


def test_the_others_notice_a_process_0_that_is_stuck(monkeypatch, exits):
  """Its store may still answer."""
  with pytest.raises(Exited):
    watch(monkeypatch, 20, own=1, beats=[{0: min(i, 3)} for i in range(1, 20)])
  ((message, code),) = exits
  assert code == 69 and "lost process 0 (no heartbeat for 25 s)" in message


def test_a_process_that_is_done_is_not_lost(monkeypatch, exits):
  watch(monkeypatch, 20, beats=[{1: "done", 2: i} for i in range(1, 30)])
  assert not exits


def test_the_key_value_store_goes_with_process_0(monkeypatch, exits):
  with pytest.raises(Exited):
    watch(monkeypatch, 20, own=1, lost=[RuntimeError("UNAVAILABLE: connection refused")])
  assert exits[0][1] == 69 and "lost process 0" in exits[0][0]


def test_many_processes_ask_process_0_no_more_often_than_it_can_answer(monkeypatch):
  for count, seconds in ((2, 2.0), (512, 2.0), (2048, 8.0)):
    monkeypatch.setattr(jax, "process_count", lambda count=count: count)
    assert processes._interval() == seconds
