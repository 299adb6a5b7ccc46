"""Sharding, in processes of their own with eight simulated devices."""

import os
import subprocess
import sys

import pytest

from tests.conftest import ROOT


# As `--devices 8` sets them; with fewer threads than collectives may hold, simulated devices wait for each other.
def eight():
  flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=8"
  return os.environ | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu", "NPROC": "32"}


def test_every_rule_set_gives_the_loss_of_one_device():
  process = subprocess.run(
    [sys.executable, "-W", "error", "-m", "tests.multidevice.rules"],
    cwd=ROOT,
    env=eight(),
    capture_output=True,
    text=True,
    timeout=400,
  )
  assert process.returncode == 0, process.stderr[-3000:]
  told = process.stdout
  assert told.count("same loss under") == 6 and "splash under a mesh" in told
  assert "each device read its own part" in told


@pytest.mark.slow
def test_every_family_has_the_same_loss_under_every_rule_set():
  families = ("BERT", "LSTM", "ELMo", "T5", "Transformer", "Llama")
  process = subprocess.run(
    [sys.executable, "-m", "tests.multidevice.rules", *families],
    cwd=ROOT, env=eight(), capture_output=True, text=True, timeout=600,
  )  # fmt: skip
  assert process.returncode == 0, process.stderr[-3000:]
  assert process.stdout.count("same loss of") == 5 * len(families) and process.stdout.count("devices") == 4


def test_a_7b_state_is_born_in_parts():
  process = subprocess.run(
    [sys.executable, "-W", "error", "-m", "tests.multidevice.make_init"],
    cwd=ROOT, env=eight(), capture_output=True, text=True, timeout=200,
  )  # fmt: skip
  assert process.returncode == 0 and "init_params in parts" in process.stdout, process.stderr[-3000:]


@pytest.mark.hosts
def test_the_command_line_simulates_devices(lmjax, tmp_path):
  """A checkpoint written on eight devices opens on one."""
  run = tmp_path / "run"
  told = lmjax(
    "train", "--config", "configs/quickstart.py:debug", "--workdir", run, "--devices", 8, "--config.rules=fsdp_tp",
    "--config.mesh.data=2", "--config.mesh.fsdp=2", "--config.mesh.model=2",
  ).stdout  # fmt: skip
  assert "on each of 8 device(s)" in told
  assert len(lmjax("generate", "--workdir", run, "--prompt", "The", "--max_new_tokens", 4).stdout) > 3
