"""Several hosts: how they find each other, notice that one is gone, and leave together.

They meet by three environment variables, LMJAX_COORDINATOR (host:port of process 0), LMJAX_PROCESSES and LMJAX_PROCESS;
under SLURM, MPI, GKE and on a TPU pod jax finds them by itself.
"""

import contextlib
import json
import os
import re
import signal
import socket
import threading
import time
import traceback
from typing import Any

import jax
import numpy as np

from lmjax.utils.errors import UserError

VARIABLES = ("LMJAX_COORDINATOR", "LMJAX_PROCESSES", "LMJAX_PROCESS")
LIMIT = 300.0  # seconds to wait for hosts at the start; LMJAX_TIMEOUT sets another
SILENCE = 30.0  # seconds after which a silent host is taken for lost
EXIT_PEER_LOST = 69  # exit code of the others

# What XLA says when another process went away; any other error is this program's own.
PEER_ERROR = re.compile(
  "UNAVAILABLE|ABORTED|CANCELLED|DEADLINE_EXCEEDED|heartbeat|Gloo|Connection (reset|closed)", re.I
)

_leaving = threading.Event()  # from here on, a silent host is one that has left before us


def join() -> None:
  """Connects this process to the others of its run, if it has any; nothing must have asked jax for a device before.

  Raises:
    UserError: some did not come in time, with their numbers; or they have different numbers of devices.
  """
  given = [os.environ.get(name) for name in VARIABLES]
  try:
    limit = float(os.environ.get("LMJAX_TIMEOUT", LIMIT))
  except ValueError as error:
    raise UserError(f"hosts: LMJAX_TIMEOUT is a number of seconds, not {os.environ['LMJAX_TIMEOUT']!r}") from error
  options: dict[str, Any] = {"initialization_timeout": int(limit), "heartbeat_timeout_seconds": int(SILENCE)}
  if any(given):
    if not all(given):
      missing = [name for name, value in zip(VARIABLES, given, strict=True) if not value]
      raise UserError(f"hosts: {', '.join(missing)} is not set; set all of {', '.join(VARIABLES)}, or none")
    coordinator, count, number = given
    if not (count.isdigit() and number.isdigit() and int(number) < int(count) and ":" in coordinator):
      raise UserError(
        f"hosts: {coordinator}, {count} processes, process {number}: give host:port and a number below the count"
      )
    if int(count) == 1:
      return
    _rendezvous(coordinator, int(count), int(number), limit)
    options |= {"coordinator_address": coordinator, "num_processes": int(count), "process_id": int(number)}
  elif not _managed():
    return
  jax.config.update("jax_cpu_collectives_implementation", "gloo")
  late = threading.Timer(limit - 2, _stop, (f"hosts: not all processes came within {limit:g} s; is one down?", 2))
  late.daemon = True
  late.start()
  try:
    jax.distributed.initialize(**options)
  except (RuntimeError, ValueError) as error:
    raise UserError(f"hosts: the processes could not connect: {str(error).splitlines()[0]}") from error
  finally:
    late.cancel()
  found = {p: sum(d.process_index == p for d in jax.devices()) for p in range(jax.process_count())}
  most = max(found.values())
  poor = [f"process {p} has {n}" for p, n in found.items() if n < most]
  if poor:
    raise UserError(f"hosts: every process should bring {most} devices, but {', '.join(poor)}")
  threading.Thread(target=_watch, daemon=True).start()


def _managed() -> bool:
  """Whether a launcher that jax knows has started several processes."""
  several = ("SLURM_STEP_NUM_TASKS", "OMPI_COMM_WORLD_SIZE", "MEGASCALE_NUM_SLICES")
  workers = os.environ.get("TPU_WORKER_HOSTNAMES", "").split(",")
  if any(int(os.environ.get(name) or 1) > 1 for name in several) or len(workers) > 1:
    return True
  from jax._src.clusters.cloud_tpu_cluster import GceTpuCluster  # asks the machine's metadata, on a TPU only

  return GceTpuCluster.is_env_present() and GceTpuCluster.get_process_count() > 1


def _rendezvous(coordinator: str, count: int, number: int, limit: float) -> None:
  """Waits until all processes are there: jax itself would abort without a word on which is not.

  Each tells process 0, on the port after the coordinator's, its number and host name, and hears who is missing.
  """
  host, _, port = coordinator.rpartition(":")
  deadline = time.monotonic() + limit
  if number:
    missing = _announce(host, int(port) + 1, number, deadline)
  else:
    missing = _gather(int(port) + 1, count, deadline)
  if missing:
    raise UserError(
      f"hosts: {count} processes are expected and {count - len(missing)} came within {limit:g} s; missing: process "
      f"{', '.join(map(str, missing))}"
    )


def _gather(port: int, count: int, deadline: float) -> list[int]:
  came: dict[int, socket.socket] = {}
  try:
    server = socket.create_server(("", port))
  except OSError as error:
    raise UserError(f"hosts: port {port}, next to the coordinator's, is taken ({error.strerror})") from error
  with server:
    while len(came) < count - 1 and time.monotonic() < deadline:
      server.settimeout(max(deadline - time.monotonic(), 0.01))
      try:
        connection = server.accept()[0]
        connection.settimeout(5)
        came[json.loads(connection.makefile().readline())["process"]] = connection
      except (OSError, ValueError, KeyError):
        continue
    missing = sorted(set(range(1, count)) - set(came))
    for connection in came.values():
      connection.sendall((json.dumps(missing) + "\n").encode())
      connection.close()
  return missing


def _announce(host: str, port: int, number: int, deadline: float) -> list[int]:
  told = json.dumps({"process": number, "host": socket.gethostname()}) + "\n"
  while time.monotonic() < deadline:
    try:
      with socket.create_connection((host, port), timeout=5) as connection:
        connection.sendall(told.encode())
        connection.settimeout(max(deadline - time.monotonic(), 0) + 10)
        return json.loads(connection.makefile().readline())
    except (OSError, ValueError):
      time.sleep(0.2)  # process 0 is not up yet
  return [0]


def _watch() -> None:
  """Stops this process with a message when another has been silent for 30 s; jax would abort without one."""
  from jax._src import distributed  # its key-value store is the one channel that needs no device

  client, own = distributed.global_state.client, jax.process_index()
  others = {p: (0, time.monotonic()) for p in range(jax.process_count()) if p != own}
  beat = 0
  while not _leaving.wait(2):
    beat += 1
    try:
      client.key_value_set(f"lmjax/alive/{own}", str(beat), allow_overwrite=True)
      for process, (last, since) in others.items():
        now = client.key_value_try_get(f"lmjax/alive/{process}") if beat > 1 else "0"
        if now == "done":
          others = {p: seen for p, seen in others.items() if p != process}
          break
        others[process] = (last, since) if int(now) == last else (int(now), time.monotonic())
    except Exception as error:  # the store lives in process 0
      if "NOT_FOUND" not in str(error) and not _leaving.is_set():
        _stop(
          "hosts: process 0 is gone; the others stop. The same command goes on from the last checkpoint", EXIT_PEER_LOST
        )
    for process, (_, since) in others.items():
      if time.monotonic() - since > SILENCE - 5:
        _stop(
          f"hosts: process {process} is gone (silent for {SILENCE - 5:g} s); the others stop. "
          "The same command goes on from the last checkpoint",
          EXIT_PEER_LOST,
        )


@contextlib.contextmanager
def joined():
  """Joins the other hosts of the run, if there are any, and leaves with them; an error ends this process at once.

  Otherwise it would wait for hosts that wait for it.
  """
  join()
  try:
    yield
  except BaseException as error:
    if jax.process_count() == 1:
      raise
    if isinstance(error, jax.errors.JaxRuntimeError) and PEER_ERROR.search(str(error)):
      reason = str(error).strip().splitlines()[0][:200]
      _stop(
        f"hosts: another process is gone ({reason}). The same command goes on from the last checkpoint", EXIT_PEER_LOST
      )
    if not isinstance(error, UserError):
      traceback.print_exc()
    _stop(str(error) or type(error).__name__, 2 if isinstance(error, UserError) else 1)
  if jax.process_count() > 1:
    from jax._src import distributed

    _leaving.set()
    key = f"lmjax/alive/{jax.process_index()}"
    distributed.global_state.client.key_value_set(key, "done", allow_overwrite=True)
    jax.distributed.shutdown()


def _stop(message: str, code: int) -> None:
  """Ends the process from any thread: the main one may be waiting for a host that will not answer."""
  os.write(2, f"lmjax: {message}\n".encode())
  os._exit(code)


def gather(values: np.ndarray, own: list[int]) -> np.ndarray:
  """Returns what every host knows of its `own` entries, put together; to be called by all of them."""
  if jax.process_count() == 1:
    return values
  from jax.experimental import multihost_utils

  mine = np.zeros(len(values), bool)
  mine[own] = True
  whole = values.copy()
  for told, true in zip(*multihost_utils.process_allgather((values, mine)), strict=True):
    whole[true] = told[true]
  return whole


def wait_for_all(name: str) -> None:
  """Returns when every host has come to this point."""
  if jax.process_count() > 1:
    from jax.experimental import multihost_utils

    multihost_utils.sync_global_devices(name)


class Signals:
  """Remembers the first SIGTERM or SIGINT, for the loop to save and leave; the second one acts at once.

  With several hosts jax itself takes the SIGTERM of any, and all hear of it at the same step.
  """

  def __init__(self):
    self.received: signal.Signals | None = None

  def __enter__(self) -> "Signals":
    self._before = {}
    if threading.current_thread() is threading.main_thread():
      own = (signal.SIGTERM, signal.SIGINT) if jax.process_count() == 1 else (signal.SIGINT,)
      self._before = {s: signal.signal(s, self._catch) for s in own}
    return self

  def at(self, step: int) -> signal.Signals | None:
    """Returns the signal to leave for after this step: the same on every host."""
    if jax.process_count() > 1 and self.received is None:
      from jax.experimental import multihost_utils

      if multihost_utils.reached_preemption_sync_point(step):
        self.received = signal.SIGTERM
    return self.received

  def _catch(self, number: int, frame) -> None:
    signal.signal(number, self._before[number])
    if jax.process_count() > 1:
      os.kill(os.getpid(), signal.SIGTERM)  # of which all hosts hear at the same step
    else:
      self.received = signal.Signals(number)

  def __exit__(self, *error) -> None:
    for number, handler in self._before.items():
      signal.signal(number, handler)
