"""Reads mutated files in a process of its own, within limits on memory and time, and answers with what went wrong.

    python -m tests.fuzz.worker FOLDER

Each line of standard input is a JSON object {"reader", "first", "count", "places"}; for each, a line of standard output
lists the failures. Before each mutation, its number is written, so that a process that dies says at which one. With
"places", what is read is not a file with other content, but something else in the place of a file.
"""

import contextlib
import io
import json
import os
import pathlib
import random
import resource
import shutil
import signal
import sys
import traceback
import warnings

from tests.fuzz import mutate

MEMORY = 3 * 2**30  # bytes of address space more than before the first mutation
SECONDS = 60  # of one mutation, which takes milliseconds on a machine with nothing else to do
WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
CHANGES = ("os.remove", "os.rename", "os.mkdir", "os.rmdir", "os.link", "os.symlink", "os.chmod", "os.truncate")
PROCESSES = ("os.system", "subprocess.Popen", "os.exec", "os.posix_spawn", "os.fork", "socket.connect")


class Outside(BaseException):
  """Something was written outside of the folder, or a process was started; no `except Exception` hides it."""


class Hang(BaseException):
  """A mutation takes too long; not a TimeoutError, which is an OSError, which readers report as such."""


class Guard:
  """Watches what Python does while a mutation is read."""

  def __init__(self, folder: pathlib.Path):
    self.folder, self.on, self.seen = str(folder), False, []
    self.denied: dict[str, int] = {}  # {path: the error of opening it}
    sys.addaudithook(self._hook)

  def _hook(self, event: str, arguments: tuple) -> None:
    if not self.on:
      return
    writes = event in CHANGES or (event == "open" and isinstance(arguments[2], int) and arguments[2] & WRITES)
    path = arguments[0] if arguments else ""
    denied = event == "open" and isinstance(path, str | os.PathLike) and self.denied.get(os.path.abspath(path))
    if denied:
      raise OSError(denied, os.strerror(denied), str(path))
    if writes and isinstance(path, str | bytes | os.PathLike):
      at = arguments[1] if event in ("os.remove", "os.rmdir") else -1  # the folder that a relative path is in
      base = os.readlink(f"/proc/self/fd/{at}") if at >= 0 else ""
      path = os.path.abspath(os.path.join(base, os.fsdecode(path)))
      if path.startswith((self.folder, "/dev/", "/proc/")):
        return
      self._found(f"{event} {path}")
    elif event in PROCESSES:
      self._found(f"{event} {arguments[:1]}")

  def _found(self, what: str) -> None:
    self.seen.append(what)
    raise Outside(what)


def attempt(reader, example: pathlib.Path, case: pathlib.Path, name: str, what: bytes | str, guard: Guard) -> str:
  """Returns what is wrong with reading an example that is changed; empty if nothing is.

  Args:
    what: the content that one of its files has, or the name of what is in its place, of `mutate.PLACES`.
  """
  from lmjax.utils.errors import UserError

  shutil.rmtree(case, ignore_errors=True)
  shutil.copytree(example, case)
  guard.denied = {}
  if isinstance(what, bytes):
    (case / name).write_bytes(what)
  elif what in mutate.DENIED:
    guard.denied = {str(case / name): mutate.DENIED[what]}
  else:
    mutate.PLACES[what](case / name)
  guard.seen.clear()
  signal.setitimer(signal.ITIMER_REAL, SECONDS, 5)  # again and again: a callback of C may drop what it raises
  guard.on = True
  error = ""
  try:
    with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
      warnings.simplefilter("ignore")
      reader.read(case)
  except UserError as problem:
    if not str(problem).isprintable() or len(str(problem)) > 2000:
      error = f"the message is not one printable line: {str(problem)[:300]!r}"
  except BaseException as problem:
    last = [f for f in traceback.extract_tb(problem.__traceback__) if "lmjax" in f.filename][-1:]
    where = "".join(f"{pathlib.Path(f.filename).name}:{f.lineno} {f.line}" for f in last)
    error = f"{type(problem).__name__}: {str(problem)[:200]!r} at {where}"
  finally:
    guard.on = False
    signal.setitimer(signal.ITIMER_REAL, 0)
  return f"touched {guard.seen[0]}" if guard.seen else error


def kind_of(error: str) -> str:
  """Returns what two failures have in common that are the same."""
  return error.split(":")[0]


def run(name: str, folder: pathlib.Path, numbers: range, guard: Guard, places: bool) -> list[dict]:
  """Returns the failures of a reader: the file, the error, and the minimised content, or what is in its place."""
  from tests.fuzz.readers import READERS

  reader, example = READERS[name], folder / "example" / name.replace(" ", "-")
  case, failures, seen = folder / "case", [], set()  # every mutation is read at the same path, which some files name
  shutil.rmtree(case, ignore_errors=True)
  if not example.exists():
    case.mkdir()
    with contextlib.redirect_stdout(io.StringIO()):
      reader.make(case)
    example.parent.mkdir(exist_ok=True)
    case.rename(example)
  files = sorted({p for pattern in reader.files for p in example.glob(pattern) if p.is_file()})
  assert attempt(reader, example, case, files[0].relative_to(example), files[0].read_bytes(), guard) == "", (
    "the example"
  )
  kinds = [(file, kind) for file in files for kind in (*mutate.PLACES, *mutate.DENIED)]
  random.Random(name).shuffle(kinds)
  for number in numbers[: max(round(len(numbers) * reader.weight), 1)]:
    if places and number >= len(kinds):
      break
    file, kind = kinds[number] if places else (random.Random(f"{name} {number}").choice(files), "")
    relative = file.relative_to(example)
    data = kind or mutate.mutate(str(relative), file.read_bytes(), number)
    print(json.dumps({"at": number, "file": str(relative), "kind": kind}), flush=True)
    if error := attempt(reader, example, case, relative, data, guard):
      if error.split(" at ")[-1] in seen:
        continue
      seen.add(error.split(" at ")[-1])
      fails = lambda d: kind_of(attempt(reader, example, case, relative, d, guard)) == kind_of(error)  # noqa: B023, E731
      small = data if places or "Hang" in error else mutate.minimise(data, fails, 200)
      content = kind or mutate.show(small)
      failures.append({"number": number, "file": str(relative), "error": error, "content": content})
  shutil.rmtree(case, ignore_errors=True)
  return failures


def timeout(*_) -> None:
  raise Hang(f"more than {SECONDS} s")


def main() -> None:
  folder = pathlib.Path(sys.argv[1]).resolve()
  os.environ |= {"HOME": str(folder), "TMPDIR": str(folder), "JAX_PLATFORMS": "cpu"}
  import jax

  from tests.fuzz import readers  # noqa: F401  # before memory is limited

  jax.config.update("jax_enable_compilation_cache", False)
  jax.numpy.zeros(1).block_until_ready()
  signal.signal(signal.SIGALRM, timeout)
  pages = int(pathlib.Path("/proc/self/statm").read_text().split()[0]) if sys.platform == "linux" else 0
  if pages:
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + MEMORY,) * 2)
  guard = Guard(folder)
  print(json.dumps({"ready": True}), flush=True)
  for line in sys.stdin:
    task = json.loads(line)
    numbers = range(task["first"], task["first"] + task["count"])
    print(json.dumps({"failures": run(task["reader"], folder, numbers, guard, task["places"])}), flush=True)


if __name__ == "__main__":
  main()
