"""Readers of mutated files succeed or raise UserError: nothing else, no hang, nothing written elsewhere.

    pytest tests/fuzz                  a few dozen mutations of each format
    pytest tests/fuzz --all            300
    pytest tests/fuzz --fuzz 10000     any number; -k bilm for one format

A failure is printed with the name of the file and its minimised content.
"""

import json
import os
import select
import subprocess
import sys

import pytest

from tests.conftest import ROOT
from tests.fuzz import mutate

SLOW = tuple(f"run {family}" for family in ("bert", "elmo", "gpt", "llama", "lstm", "t5", "transformer"))
NAMES = (
  "run", "config", "metrics", "sources", "tokenizer bpe", "tokenizer wordpiece", "tokenizer unigram",
  "tokenizer sentencepiece_bpe", "tokenizer characters", "tokenizer bytes", "tokenizer words", "tokenizer sentinels",
  "tokenizer merges", "tokenizer vocabulary", "prepared", "unfinished", "safetensors", "huggingface",
  "adapter", "huggingface bert", "flax", "gguf", "gguf llama", "modules", "bilm", "checkpoint", "prompts", "lines",
  "texts", "examples", "dialogues", "scores", "compressed", "suite", "index", "images",
)  # fmt: skip
SECONDS = 120  # without an answer


class Worker:
  """A process that reads mutations; a new one takes the place of one that died."""

  def __init__(self, folder):
    self.folder, self.process, self.log = folder, None, None
    self.waiting = b""  # of the process's output, not yet taken

  def _start(self) -> None:
    environment = os.environ | {"PYTHONPATH": str(ROOT), "PYTHONHASHSEED": "0"}
    self.log = open(self.folder / "stderr", "w+")  # noqa: SIM115  # closed with the process
    self.process = subprocess.Popen(
      [sys.executable, "-m", "tests.fuzz.worker", str(self.folder)],
      cwd=ROOT, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.log, bufsize=0,
    )  # fmt: skip
    assert self._answer() == {"ready": True}, self._stderr()

  def _stderr(self) -> str:
    self.log.seek(0)
    return self.log.read()[-3000:]

  def _answer(self) -> dict | None:
    """Returns the next line of the process; None where it died or hangs."""
    while b"\n" not in self.waiting:
      if not select.select([self.process.stdout], [], [], SECONDS)[0]:
        return None
      more = os.read(self.process.stdout.fileno(), 2**16)
      if not more:
        return None
      self.waiting += more
    line, self.waiting = self.waiting.split(b"\n", 1)
    return json.loads(line)

  def run(self, reader: str, count: int, places: bool = False) -> list[dict]:
    """Returns the failures among the first `count` mutations, of which slow readers read a part.

    Args:
      places: mutate what is in the place of a file, not its content.
    """
    failures, first = [], 0
    while first < count:
      if self.process is None:
        self._start()
      task = {"reader": reader, "first": first, "count": count - first, "places": places}
      self.process.stdin.write(json.dumps(task).encode() + b"\n")
      at = {"at": first, "file": "?", "kind": ""}
      while (answer := self._answer()) is not None and "at" in answer:
        at = answer
      if answer is not None:
        return failures + answer["failures"]
      error = f"the process hangs or died: {self._stderr()}"
      failures.append(
        {"number": at["at"], "file": at["file"], "error": error, "content": at["kind"] or f"seed {at['at']}"}
      )
      self.close()
      first = at["at"] + 1
    return failures

  def close(self) -> None:
    if self.process is not None:
      self.process.kill()
      self.process.wait()
      self.process.stdin.close()
      self.process.stdout.close()
      self.log.close()
      self.process, self.waiting = None, b""


@pytest.fixture(scope="module")
def worker(tmp_path_factory):
  worker = Worker(tmp_path_factory.mktemp("fuzz"))
  yield worker
  worker.close()


@pytest.mark.parametrize("name", [*NAMES, *(pytest.param(name, marks=pytest.mark.slow) for name in SLOW)])
@pytest.mark.parametrize("places", [False, True], ids=["contents", "places"])
def test_mutated_files_are_read_or_refused(name, places, worker, fuzz):
  failures = worker.run(name, fuzz, places)
  lines = [f"{f['file']} with {f['content']}\n  {f['error']} (mutation {f['number']})" for f in failures]
  assert not failures, f"{len(failures)} kinds of failure:\n" + "\n".join(lines)


def test_every_reader_has_a_test():
  from tests.fuzz.readers import READERS

  assert set(READERS) == {*NAMES, *SLOW}


def test_mutations_are_deterministic_and_failing_ones_become_small():
  data = json.dumps({"a": [1, 2, {"b": "text"}], "c": None}).encode()
  first = [mutate.mutate("a.json", data, seed) for seed in range(200)]
  assert first == [mutate.mutate("a.json", data, seed) for seed in range(200)]
  assert len(set(first)) > 150 and data not in first[:5]
  small = mutate.minimise(b"x" * 500 + b"bad" + b"y" * 400, lambda d: b"b" in d and b"d" in d)
  assert sorted(small) == sorted(b"bd") and mutate.show(small) == "b'bd'"
