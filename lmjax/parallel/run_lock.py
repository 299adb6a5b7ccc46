"""One run per folder: a lock that the kernel releases when its process ends, or a lease where a folder is remote."""

import contextlib
import datetime
import fcntl
import os
import shlex
import socket
import sys
from collections.abc import Callable, Iterator

from etils import epath

from lmjax.parallel import hosts
from lmjax.utils import names
from lmjax.utils.errors import UserError, reason
from lmjax.utils.files import is_remote

NAME = "run.lock"  # its content is the holder; without a lock on it, it means nothing


@contextlib.contextmanager
def only_run(workdir: epath.PathLike, take_over: bool = False) -> Iterator[Callable[[], None]]:
  """Keeps other runs out of a run folder; the first host does, and all hosts fail alike.

  Args:
    take_over: of a remote folder: do not wait until the lease of a killed run is stale.

  Yields:
    What raises UserError if the folder is no longer this run's, to be called on the first host.

  Raises:
    UserError: another run uses the folder, or it cannot be written.
  """
  check: Callable[[], None] = lambda: None  # noqa: E731  # the kernel does not take a lock away
  with contextlib.ExitStack() as stack:

    def acquire() -> None:
      nonlocal check
      if is_remote(workdir):
        lease = names.load("lmjax.parallel.lease:lease")
        check = stack.enter_context(lease(str(workdir), this_process(), take_over))
      else:
        stack.enter_context(_locked(os.path.abspath(os.path.expanduser(workdir))))

    hosts.together(acquire, only_first=True)
    yield check


@contextlib.contextmanager
def _locked(workdir: str) -> Iterator[None]:
  new, path = not os.path.isdir(workdir), os.path.join(workdir, NAME)
  with contextlib.ExitStack() as stack:
    try:
      os.makedirs(workdir, exist_ok=True)
      file = stack.enter_context(open(path, "a+"))
      try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
      except BlockingIOError as error:
        file.seek(0)
        raise refusal(workdir, file.read()) from error
      except OSError as error:  # some network file systems
        print(f"{workdir} is on a file system without locks ({reason(error)}); start no second run in it")
      file.truncate(0)
      os.write(file.fileno(), this_process().encode())  # not buffered: closing the file would fail again at a full disk
    except OSError as error:
      raise UserError(f"{workdir} cannot be used as a run folder: {reason(error)}") from error
    try:
      yield
    finally:
      if new and os.listdir(workdir) == [NAME]:  # the run was refused before it wrote anything
        os.unlink(path)
        os.rmdir(workdir)


def this_process() -> str:
  """Returns who runs this process: number, user, host, start and command."""
  now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
  user = os.environ.get("USER") or f"user {os.getuid()}"
  return f"process {os.getpid()} of {user} on {socket.gethostname()} since {now}: {shlex.join(sys.orig_argv)[:500]}"


def refusal(workdir: str, holder: str, advice: str = "end that run") -> UserError:
  """Returns the error for a folder that another run uses."""
  return UserError(f"{workdir} is used by another run ({holder}); {advice}, or choose another --workdir")
