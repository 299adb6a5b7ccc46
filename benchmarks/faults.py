"""Interrupts tiny runs at random moments, resumes them, and compares them with a run that nothing interrupted.

    python benchmarks/faults.py --rounds 100

Each round starts a run, which a fault ends, and repeats the same command until the run is finished. Then its parameters
must be those of the uninterrupted run, bit for bit, and metrics.jsonl must have the same losses. The faults:

    any moment       SIGKILL after a random time
    save             SIGKILL up to 60 ms after a checkpoint begins to be written
    restore          SIGKILL at a random file that the resumed run opens to restore a checkpoint, or up to 60 ms later
    rewrite          SIGKILL at a random operation on config.json, metrics.jsonl, the tokenizer or a summary
    full disk        from a random file operation on, every file that is opened, created or renamed fails with ENOSPC
    file size        no file may grow beyond a random number of bytes: also what other libraries write fails

The table that it prints is kept in benchmarks/notes/storage.md.
"""

import argparse
import collections
import contextlib
import errno
import hashlib
import json
import os
import pathlib
import random
import resource
import shutil
import signal
import sys
import tempfile
import threading
import time

CONFIG = "configs/quickstart.py:debug"
CHANGES = {
  "steps": "24", "batch": "4", "checkpoint.every": "4", "checkpoint.keep": "2", "data.length": "32", "model.depth": "1",
  "model.width": "16", "model.mlp": "16", "model.dropout": "0.1", "optim.schedule": "constant", "log.every": "1",
}  # fmt: skip
TEXT = "the quick brown fox jumps over the lazy dog, and {} other animals do nothing at all\n"
FAULTS = ("any moment", "save", "restore", "rewrite", "full disk", "file size")
SMALL = ("config.json", "metrics.jsonl", "tokenizer", "summary.json", "loss.png")
WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT
OPERATIONS = ("open", "os.mkdir", "os.rename", "os.remove", "os.rmdir")
ATTEMPTS = 4  # of finishing a run after its fault


class Fault:
  """What happens to one process: an audit hook counts its operations on files of the run folder."""

  def __init__(self, name: str, run: pathlib.Path, rng: random.Random, seconds: float):
    self.name, self.run = name, str(run)
    self.after, self.delay = rng.randrange(200 if name == "full disk" else 12), rng.choice((0.0, rng.random() * 0.06))
    self.count, self.full = 0, False
    if name == "any moment":
      threading.Timer(rng.random() * seconds, self._kill).start()
    if name == "file size":
      resource.setrlimit(resource.RLIMIT_FSIZE, (int(10 ** rng.uniform(0, 6)),) * 2)
    sys.addaudithook(self._hook)

  def _kill(self) -> None:
    os.kill(os.getpid(), signal.SIGKILL)

  def _counts(self, event: str, path: str, writes: bool) -> bool:
    """Returns whether an operation is one of those that the fault waits for."""
    if self.name == "save":
      return event == "os.mkdir" and "checkpoints" in path
    if self.name == "restore":
      return "checkpoints" in path and not writes
    if self.name == "rewrite":
      return writes and any(f"/{name}" in path for name in SMALL)
    return self.name == "full disk" and writes

  def _hook(self, event: str, arguments: tuple) -> None:
    if event not in OPERATIONS or not isinstance(arguments[0], str | os.PathLike):
      return
    path = os.path.abspath(os.fspath(arguments[0]))
    writes = event != "open" or bool(isinstance(arguments[2], int) and arguments[2] & WRITES)
    if not path.startswith(self.run) or not self._counts(event, path, writes):
      return
    self.count += 1
    if self.name == "full disk":
      if self.count > self.after and event not in ("os.remove", "os.rmdir"):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), path)
    elif self.count == self.after + 1:
      threading.Timer(self.delay, self._kill).start() if self.delay else self._kill()


def digest(run: pathlib.Path) -> str:
  """Returns the SHA-256 of the parameters of a run at its last checkpoint."""
  import jax
  import numpy as np

  from lmjax import storage

  sha = hashlib.sha256()
  for name, array in sorted(storage.open(run).parameters().items()):
    sha.update(name.encode() + np.asarray(jax.device_get(array[...])).tobytes())
  return sha.hexdigest()


def train(run: pathlib.Path, result: pathlib.Path, fault: str = "", seed: int = 0, seconds: float = 0.0) -> int:
  """Runs the command in a process of its own, and returns its exit code, negative for a signal.

  Args:
    seconds: that the command takes if nothing interrupts it.
  """
  child = os.fork()
  if child:
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
  code = 70
  try:
    with open(result.with_suffix(".log"), "a") as log:
      os.dup2(log.fileno(), 1)
      os.dup2(log.fileno(), 2)
    from lmjax.__main__ import main

    if fault:
      Fault(fault, run, random.Random(f"{fault} {seed}"), seconds)
    sys.argv = ["lmjax", "train", "--config", str(run.parent.parent / "config.json"), "--workdir", str(run)]
    code = main()
    if code == 0 and not fault:
      result.write_text(digest(run))
  except BaseException:  # what a command must never raise; the log may have reached the limit of its size
    import traceback

    with contextlib.suppress(OSError):
      traceback.print_exc()
  finally:
    with contextlib.suppress(OSError):
      sys.stderr.flush()
    os._exit(code)


def losses(run: pathlib.Path) -> dict[int, float]:
  """Returns {step: loss} of metrics.jsonl, which must have whole lines only, each step once."""
  lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
  lines = [line for line in lines if "train_loss" in line]
  found = {line["step"]: line["train_loss"] for line in lines}
  assert len(found) == len(lines), "a step is logged twice"
  return found


def steps(run: pathlib.Path) -> int:
  """Returns the step of the newest checkpoint, 0 without one."""
  folder = run / "checkpoints"
  return max([int(p.name) for p in folder.iterdir() if p.name.isdigit()] if folder.exists() else [0], default=0)


def play(
  fault: str, seed: int, folder: pathlib.Path, expected: tuple[str, dict[int, float]], seconds: float
) -> dict[str, object]:
  """Returns what one round came to: how the fault ended the run, the newest checkpoint then, and what is wrong."""
  run, result = folder / "run", folder / "result"
  if fault in ("restore", "rewrite") and random.Random(f"before {seed}").random() < (1 if fault == "restore" else 0.5):
    train(run, result, "any moment", seed, seconds)  # so that there is something to restore or to rewrite
  code = train(run, result, fault, seed, seconds)
  kept, wrong = steps(run), ""
  codes = []
  while (not codes or codes[-1] != 0) and len(codes) < ATTEMPTS:
    codes.append(train(run, result))
  log = result.with_suffix(".log").read_text()
  if codes[-1] != 0:
    wrong = f"cannot be resumed: {log.strip().splitlines()[-1][:200] if log.strip() else codes}"
  elif "Traceback" in log:
    wrong = "a traceback"
  elif len(codes) > 1:
    wrong = f"resumed only at attempt {len(codes)}"
  elif code not in (0, 2, -signal.SIGKILL):
    wrong = f"exit code {code}"
  elif result.read_text() != expected[0]:
    wrong = "other parameters"
  elif losses(run) != expected[1]:
    wrong = "other metrics"
  return {"code": code, "kept": kept, "wrong": wrong}


def write_config(folder: pathlib.Path) -> None:
  """Writes the config of all runs: the tiny model of quickstart:debug on a text of its own."""
  from lmjax import config

  (folder / "text.txt").write_text("".join(TEXT.format(i) for i in range(400)))
  settings = config.load(CONFIG, CHANGES)
  source = {"kind": "lmjax.data.sources.text:TextFiles", "files": str(folder / "text.txt"), "document": "line"}
  settings["data"] |= {"source": source | {"split": ":95%"}, "validation": source | {"split": "95%:"}}
  settings["evals"] = {"every": 12, "validation": {"kind": "lmjax.evals.perplexity:Perplexity"}}
  (folder / "config.json").write_text(json.dumps(settings))


def main() -> int:
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
  parser.add_argument("--rounds", type=int, default=100)
  parser.add_argument("--first", type=int, default=0, help="number of the first round, which is its seed")
  options = parser.parse_args()
  os.environ["JAX_PLATFORMS"] = "cpu"
  # Imported once; every run is a fork of this process, in which no backend of jax has started.
  import lmjax.commands.train  # noqa: F401
  import lmjax.storage.run  # noqa: F401

  began, table = time.time(), collections.defaultdict(list)
  folder = pathlib.Path(tempfile.mkdtemp(prefix="lmjax-faults-"))
  try:
    write_config(folder)
    for name in ("first", "whole"):
      (folder / name).mkdir()
    train(folder / "first" / "run", folder / "first" / "result")  # fills the compilation cache
    start = time.time()
    code, seconds = train(folder / "whole" / "run", folder / "whole" / "result"), time.time() - start
    if code:
      print((folder / "whole" / "result.log").read_text(), file=sys.stderr)
      return 1
    expected = ((folder / "whole" / "result").read_text(), losses(folder / "whole" / "run"))
    for number in range(options.first, options.first + options.rounds):
      fault = FAULTS[number % len(FAULTS)]
      (folder / str(number)).mkdir()
      outcome = play(fault, number, folder / str(number), expected, seconds)
      table[fault].append(outcome)
      state = outcome["wrong"] or "the same bits"
      print(f"round {number}: {fault}, exit code {outcome['code']}, checkpoint {outcome['kept']}: {state}", flush=True)
      if not outcome["wrong"]:
        shutil.rmtree(folder / str(number))
  finally:
    if not any(outcome["wrong"] for outcomes in table.values() for outcome in outcomes):
      shutil.rmtree(folder)
  print("\n| fault | rounds | killed | exit code 2 | not reached | with a checkpoint | resumed to the same bits |")
  print("|---|---|---|---|---|---|---|")
  for fault, outcomes in table.items():
    count = lambda *codes: sum(outcome["code"] in codes for outcome in outcomes)  # noqa: B023, E731
    kept, same = sum(o["kept"] > 0 for o in outcomes), sum(not o["wrong"] for o in outcomes)
    print(f"| {fault} | {len(outcomes)} | {count(-9)} | {count(2)} | {count(0)} | {kept} | {same} |")
  wrong = sum(bool(outcome["wrong"]) for outcomes in table.values() for outcome in outcomes)
  print(
    f"\n{options.rounds} rounds in {time.time() - began:.0f} s; {wrong} lost something"
    + f", see {folder}" * bool(wrong)
  )
  return 1 if wrong else 0


if __name__ == "__main__":
  sys.exit(main())
