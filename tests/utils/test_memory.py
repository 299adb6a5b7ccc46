"""With glibc, freed memory stays in the process."""

import platform
import subprocess
import sys

import pytest

from lmjax import __main__ as lmjax
from tests.conftest import ROOT

PROGRAM = """
import ctypes, resource, sys
from lmjax.utils.memory import keep_memory

def faults():
  start = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
  block = ctypes.CDLL(None).malloc
  block.restype, block.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
  free = ctypes.CDLL(None).free
  free.argtypes = [ctypes.c_void_p]
  address = block(64 << 20)
  ctypes.memset(address, 1, 64 << 20)
  free(address)
  return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - start

if sys.argv[1] == "keep":
  keep_memory()
faults()
print(faults())
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the C library is not glibc")
def test_freed_memory_is_reused_without_page_faults():
  def run(how):
    process = subprocess.run([sys.executable, "-c", PROGRAM, how], cwd=ROOT, capture_output=True, text=True, check=True)
    return int(process.stdout)

  assert run("give back") > 30  # of 2 MB at the largest
  assert run("keep") < 10


def test_a_command_that_runs_a_model_keeps_memory_and_no_other(monkeypatch):
  once = ["compress", "configs", "completion", "convert", "plan", "prepare", "report", "runs", "show", "tokenizer"]
  assert {*once} | lmjax.COMPUTE == {*lmjax.COMMANDS}  # a new command belongs to one of them
  kept = []
  monkeypatch.setenv("JAX_PLATFORMS", "cpu")
  monkeypatch.setenv("PYTHONSAFEPATH", "1")
  monkeypatch.setattr(sys, "unraisablehook", sys.unraisablehook)
  for name in lmjax.COMMANDS:
    monkeypatch.setattr(lmjax, "keep_memory", lambda name=name: kept.append(name))
    lmjax._prepare_process([name])
  assert {*kept} == lmjax.COMPUTE
  monkeypatch.setenv("JAX_PLATFORMS", "tpu")
  kept.clear()
  lmjax._prepare_process(["train"])
  assert not kept
