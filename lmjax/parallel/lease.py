"""The lease of a remote run folder: an object that is created only if it is absent, and renewed while the run lives.

A run that is killed leaves its lease. It is stale when it was not renewed for two minutes by the clock of the host that
waits for it: clocks of different hosts are not compared. A run whose lease was taken over saves nothing more.
Imported for remote folders only.
"""

import contextlib
import json
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from typing import Any, Protocol

import tensorstore

from lmjax.parallel.run_lock import refusal
from lmjax.utils.errors import UserError, reason
from lmjax.utils.files import parse_json

NAME = "run.lease"
RENEW, STALE, POLL = 30.0, 120.0, 5.0  # seconds


class Store(Protocol):
  """One object of an object store. A generation stands for one version of the object, or for its absence."""

  def read(self) -> tuple[bytes | None, Any]:
    """Returns the content, None where there is no object, and the generation."""

  def write(self, content: bytes | None, generation: Any) -> Any:
    """Writes the object, or deletes it, if it has the generation; returns the new one, or None if it has another."""


class ObjectStore:
  """An object at a URL that TensorStore can write conditionally, such as gs://bucket/path."""

  def __init__(self, url: str):
    folder, _, self._key = url.rpartition("/")
    self._store = tensorstore.KvStore.open(f"{folder}/").result()

  def read(self) -> tuple[bytes | None, Any]:
    result = self._store.read(self._key).result()
    return result.value if result.state == "value" else None, result.stamp.generation

  def write(self, content: bytes | None, generation: Any) -> Any:
    return self._store.write(self._key, content, if_equal=generation).result().generation or None


class Lease:
  """The lease of one run.

  Args:
    owner: describes the run, as `run_lock.this_process` does.
    clock, wait: seconds that pass, and what lets them pass.
  """

  def __init__(
    self,
    folder: str,
    owner: str,
    store: Store,
    say: Callable[[str], None] = print,
    clock: Callable[[], float] = time.monotonic,
    wait: Callable[[float], None] = time.sleep,
  ):
    self._folder, self._store, self._say, self._clock, self._wait = folder, store, say, clock, wait
    self._owner, self._id, self._renewed = owner, uuid.uuid4().hex, 0
    self._generation: Any = None
    self._mutex = threading.Lock()  # the thread that renews, and those that save

  def acquire(self, take_over: bool = False) -> None:
    """Creates the lease, or takes over a stale one after waiting for it.

    Args:
      take_over: do not wait.

    Raises:
      UserError: the run that has the lease lives, or the store cannot be reached.
    """
    with self._reachable():
      content, generation = self._store.read()
      if content is not None and take_over:
        self._say(f"{self._folder}: takes over the lease of another run ({_owner(content)})")
      elif content is not None:
        self._say(
          f"{self._folder}: waits {STALE:g} s for the lease of another run to become stale ({_owner(content)}); "
          "--take_over does not wait"
        )
        end = self._clock() + STALE
        while content is not None and self._clock() < end:
          self._wait(POLL)
          content, latest = self._store.read()
          if content is not None and latest != generation:
            raise self._refusal(content)
          generation = latest
      self._generation = self._store.write(self._content(), generation)
      if self._generation is None:  # another run was faster
        raise self._refusal(self._store.read()[0])

  def check(self) -> None:
    """Renews the lease.

    Raises:
      UserError: another run took it over, or the store cannot be reached.
    """
    with self._mutex, self._reachable():
      self._renewed += 1  # every version differs, so that a store can tell them apart
      written = self._generation and self._store.write(self._content(), self._generation)
      if not written:
        content, generation = self._store.read()
        if self._generation and self._is_own(content):  # a write whose answer was lost
          written = self._store.write(self._content(), generation)
      self._generation = written
      if not written:
        raise UserError(
          f"{self._folder} is no longer this run's: its lease was taken over"
          f"{f' by {_owner(content)}' if content else ', and that run has ended'}; nothing more is saved"
        )

  def keep(self, stopped: threading.Event) -> None:
    """Renews the lease until `stopped` is set or it is lost; while the store cannot be reached, it tries again."""
    while not stopped.wait(RENEW) and self._generation:
      with contextlib.suppress(UserError):
        self.check()

  def release(self) -> None:
    """Deletes the lease if it is still this run's; one that cannot be deleted becomes stale."""
    with contextlib.suppress(Exception), self._mutex:
      if self._generation:
        self._store.write(None, self._generation)

  def _content(self) -> bytes:
    return json.dumps({"owner": self._owner, "id": self._id, "renewed": self._renewed}).encode()

  def _is_own(self, content: bytes | None) -> bool:
    return content is not None and f'"id": "{self._id}"'.encode() in content

  def _refusal(self, content: bytes | None) -> UserError:
    return refusal(self._folder, _owner(content), "end that run, take its lease over with --take_over")

  @contextlib.contextmanager
  def _reachable(self) -> Iterator[None]:
    try:
      yield
    except UserError:
      raise
    except Exception as error:  # what TensorStore raises depends on the store
      raise UserError(f"the lease {self._folder}/{NAME} cannot be read or written: {reason(error)}") from error


def _owner(content: bytes | None) -> str:
  """Returns who holds a lease, from its content."""
  try:
    return str(parse_json(content or b"")["owner"])
  except (ValueError, KeyError, TypeError):
    return "it does not say which"


@contextlib.contextmanager
def lease(
  folder: str, owner: str, take_over: bool = False, say: Callable[[str], None] = print
) -> Iterator[Callable[[], None]]:
  """Holds the lease of a remote folder; yields what raises UserError if it is lost.

  Raises:
    UserError: another run holds it, or the store cannot be reached.
  """
  folder = folder.rstrip("/")
  try:
    held = Lease(folder, owner, ObjectStore(f"{folder}/{NAME}"), say)
  except ValueError as error:  # a scheme that TensorStore does not know
    raise UserError(f"{folder} cannot have a lease, which keeps other runs out: {reason(error)}") from error
  held.acquire(take_over)
  stopped = threading.Event()
  thread = threading.Thread(target=held.keep, args=(stopped,), daemon=True)
  thread.start()
  try:
    yield held.check
  finally:
    stopped.set()
    held.release()
