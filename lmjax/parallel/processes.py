"""The processes of a multi-host run: connecting them, and detecting a lost one. A command connects before it starts.

Three environment variables connect them: LMJAX_COORDINATOR (host:port of process 0), LMJAX_PROCESSES (their number) and
LMJAX_PROCESS (the index of this one). Under SLURM, MPI, GKE and on a TPU pod jax detects them itself.
"""

import contextlib
import json
import os
import re
import resource
import socket
import threading
import time
import traceback
from collections.abc import Iterator
from typing import Any

import jax
from jax._src import distributed
from jax._src.clusters.cloud_tpu_cluster import GceTpuCluster

from lmjax.utils.errors import UserError
from lmjax.utils.fields import Fields
from lmjax.utils.files import parse_json

VARIABLES = ("LMJAX_COORDINATOR", "LMJAX_PROCESSES", "LMJAX_PROCESS")
TIMEOUT = 300.0  # seconds to wait for all processes at the start; LMJAX_TIMEOUT overrides it
SILENCE = 25.0  # seconds without a heartbeat after which a process counts as lost, at least
ALIVE, LOST = "lmjax/alive", "lmjax/lost"  # keys: the heartbeats of the processes, and which of them are lost
DONE = "done"  # the last heartbeat of a process that has ended its run
REQUESTS = 256  # heartbeats a second that process 0 receives at most
MESSAGE = 2000  # bytes that a process that connects may send
EXIT_PEER_LOST = 69  # exit code of the other processes when one is lost
RESUME = "rerun the same command to resume from the last checkpoint"

# In XLA's error messages when another process has exited; any other error has its cause in this process.
PEER_ERROR = re.compile(
  "UNAVAILABLE|ABORTED|CANCELLED|DEADLINE_EXCEEDED|heartbeat|Gloo|Connection (reset|closed)", re.I
)

_leaving = threading.Event()  # set at the end of a run: other processes may already have exited


def join() -> None:
  """Connects this process to the others of its run, if any; to be called before jax initialises its devices.

  Raises:
    UserError: processes are missing after the timeout, or have different numbers of devices.
  """
  timeout = _timeout()
  options: dict[str, Any] = {"initialization_timeout": int(timeout), "heartbeat_timeout_seconds": 60}
  variables = _read_variables()
  if variables and variables[1] == 1 or not (variables or _launched_by_cluster()):
    return
  with contextlib.suppress(OSError, ValueError):  # process 0 has a connection to each of the others
    resource.setrlimit(resource.RLIMIT_NOFILE, (resource.getrlimit(resource.RLIMIT_NOFILE)[1],) * 2)
  if variables:
    coordinator, count, index = variables
    _rendezvous(coordinator, count, index, timeout)
    options |= {"coordinator_address": coordinator, "num_processes": count, "process_id": index}
  jax.config.update("jax_cpu_collectives_implementation", "gloo")
  message = f"hosts: not all processes connected within {timeout:g} s; check that each of them is running"
  timer = threading.Timer(timeout - 2, _stop, (message, 2))
  timer.daemon = True
  timer.start()
  try:
    jax.distributed.initialize(**options)
  except (RuntimeError, ValueError) as error:
    raise UserError(f"hosts: the processes could not connect: {str(error).splitlines()[0]}") from error
  finally:
    timer.cancel()
  devices = {p: sum(d.process_index == p for d in jax.devices()) for p in range(jax.process_count())}
  most = max(devices.values())
  fewer = [f"process {p} has {n}" for p, n in devices.items() if n < most]
  if fewer:
    raise UserError(f"hosts: every process must have {most} devices, but {', '.join(fewer)}")
  threading.Thread(target=_watch, daemon=True).start()


def _timeout() -> float:
  value = os.environ.get("LMJAX_TIMEOUT", TIMEOUT)
  try:
    return float(value)
  except ValueError as error:
    raise UserError(f"hosts: LMJAX_TIMEOUT must be a number of seconds, not {value!r}") from error


def _read_variables() -> tuple[str, int, int] | None:
  """Returns the coordinator's address, the number of processes and this one's index, or None if they are not set."""
  values = [os.environ.get(name, "") for name in VARIABLES]
  if not any(values):
    return None
  if not all(values):
    missing = [name for name, value in zip(VARIABLES, values, strict=True) if not value]
    raise UserError(f"hosts: not set: {', '.join(missing)}; set all of {', '.join(VARIABLES)}, or none")
  coordinator, count, index = values
  if not (count.isdigit() and index.isdigit() and int(index) < int(count) and ":" in coordinator):
    settings = ", ".join(f"{name}={value}" for name, value in zip(VARIABLES, values, strict=True))
    raise UserError(f"hosts: {settings}: the coordinator must be host:port, and LMJAX_PROCESS below LMJAX_PROCESSES")
  return coordinator, int(count), int(index)


def _launched_by_cluster() -> bool:
  """Returns whether a launcher that jax detects has started several processes."""
  several = ("SLURM_STEP_NUM_TASKS", "OMPI_COMM_WORLD_SIZE", "MEGASCALE_NUM_SLICES")
  workers = os.environ.get("TPU_WORKER_HOSTNAMES", "").split(",")
  if any(int(os.environ.get(name) or 1) > 1 for name in several) or len(workers) > 1:
    return True
  return GceTpuCluster.is_env_present() and GceTpuCluster.get_process_count() > 1


def _rendezvous(coordinator: str, count: int, index: int, timeout: float) -> None:
  """Waits until all processes are running; jax alone would abort without naming the missing ones.

  Process 0 listens on the port after the coordinator's. The others send it their index and receive the missing ones.
  """
  host, _, port = coordinator.rpartition(":")
  deadline = time.monotonic() + timeout
  if index:
    missing = _announce(host, int(port) + 1, index, deadline)
  else:
    missing = _accept_others(int(port) + 1, count, deadline)
  if missing:
    raise UserError(
      f"hosts: {count - len(missing)} of {count} processes started within {timeout:g} s; missing: process "
      f"{', '.join(map(str, missing))}; start them, or wait longer with LMJAX_TIMEOUT"
    )


def _accept_others(port: int, count: int, deadline: float) -> list[int]:
  """Returns the indices of the processes that did not connect, and sends them to those that did."""
  connections: dict[int, socket.socket] = {}
  try:
    server = socket.create_server(("", port), backlog=count)
  except OSError as error:
    raise UserError(
      f"hosts: cannot listen on port {port}, the one after the coordinator's ({error.strerror}); choose another "
      "LMJAX_COORDINATOR"
    ) from error
  with server:
    while len(connections) < count - 1 and time.monotonic() < deadline:
      server.settimeout(max(deadline - time.monotonic(), 0.01))
      try:
        connection = server.accept()[0]
      except OSError:
        continue
      try:
        connection.settimeout(5)
        message = Fields(parse_json(connection.makefile("rb").readline(MESSAGE)), "hosts")
        connections[message.integer("process", least=1, most=count - 1)] = connection
      except (OSError, ValueError, UserError):  # not a process of this run
        connection.close()
    missing = sorted(set(range(1, count)) - set(connections))
    for connection in connections.values():
      connection.sendall((json.dumps(missing) + "\n").encode())
      connection.close()
  return missing


def _announce(host: str, port: int, index: int, deadline: float) -> list[int]:
  """Sends the index of this process to process 0 and returns the indices of the missing processes."""
  message = json.dumps({"process": index, "host": socket.gethostname()}) + "\n"
  while time.monotonic() < deadline:
    try:
      with socket.create_connection((host, port), timeout=5) as connection:
        connection.sendall(message.encode())
        connection.settimeout(max(deadline - time.monotonic(), 0) + 10)
        return parse_json(connection.makefile("rb").readline(), list)
    except (OSError, ValueError):
      time.sleep(0.2)  # process 0 is not listening yet
  return [0]


def _interval() -> float:
  """Returns the seconds between two heartbeats of a process."""
  return max(2.0, jax.process_count() / REQUESTS)


def _silence() -> float:
  """Returns the seconds without a heartbeat after which a process counts as lost."""
  return max(SILENCE, 3 * _interval())


def _watch() -> None:
  """Stops this process with a message when the heartbeat of another one stops; jax alone would abort without one.

  Heartbeats are counters in jax's key-value store, which needs no device and runs in process 0. Process 0 alone reads
  them all, and writes which are silent; the others read its own. So each process makes three requests an interval,
  however many there are.
  """
  client, own, beat = distributed.global_state.client, jax.process_index(), 0
  others = range(1, jax.process_count()) if own == 0 else (0,)
  heartbeats = {str(p): ("", time.monotonic()) for p in others}  # (the last one, its time)
  while not _leaving.wait(_interval()):
    beat += 1
    try:
      client.key_value_set(f"{ALIVE}/{own}", str(beat), allow_overwrite=True)
      lost = ", ".join(_silent(client, heartbeats))
      if lost and own == 0:
        client.key_value_set(LOST, lost, allow_overwrite=True)
      lost = lost or client.key_value_try_get(LOST)
    except Exception as error:
      if "NOT_FOUND" not in str(error) and not _leaving.is_set():
        _stop(f"hosts: lost process 0, stopping; {RESUME}", EXIT_PEER_LOST)
      continue
    if own == 0 and _leaving.wait(2 * _interval()):  # the store ends with this process: the others read it first
      return
    _stop(f"hosts: lost process {lost} (no heartbeat for {_silence():g} s), stopping; {RESUME}", EXIT_PEER_LOST)


def _silent(client: Any, heartbeats: dict[str, tuple[str, float]]) -> list[str]:
  """Brings the heartbeats of the other processes up to date, and returns which of them are lost."""
  now = time.monotonic()
  if "0" in heartbeats:
    read = {"0": client.key_value_try_get(f"{ALIVE}/0")}
  else:
    read = {key.rpartition("/")[2]: value for key, value in client.key_value_dir_get(ALIVE)}
  for process, (last, _) in heartbeats.items():
    if (value := read.get(process, "")) != last:
      heartbeats[process] = (value, now)
  return [p for p, (last, since) in heartbeats.items() if last != DONE and now - since > _silence()]


@contextlib.contextmanager
def joined() -> Iterator[None]:
  """Connects to the other processes of the run, if there are any, and disconnects together with them.

  With several processes an error exits immediately: a clean shutdown would wait for processes that wait for this one.
  """
  join()
  try:
    yield
  except BaseException as error:
    if jax.process_count() == 1:
      raise
    if isinstance(error, jax.errors.JaxRuntimeError) and PEER_ERROR.search(str(error)):
      reason = str(error).strip().splitlines()[0][:200]
      _stop(f"hosts: lost another process ({reason}); {RESUME}", EXIT_PEER_LOST)
    if not isinstance(error, UserError):
      traceback.print_exc()
    _stop(str(error) or type(error).__name__, 2 if isinstance(error, UserError) else 1)
  if jax.process_count() > 1:
    _leaving.set()
    key = f"{ALIVE}/{jax.process_index()}"
    distributed.global_state.client.key_value_set(key, DONE, allow_overwrite=True)
    jax.distributed.shutdown()


def _stop(message: str, code: int) -> None:
  """Exits the process from any thread, since the main thread may be waiting for a lost process in a collective."""
  os.write(2, f"lmjax: {message}\n".encode())
  os._exit(code)
