"""Several hosts, as local processes that communicate by gloo: the same run, and no run that hangs."""

import json
import os
import signal
import socket
import subprocess
import sys
import time

import numpy as np
import pytest

from tests.conftest import ROOT

CONFIG = ("--config", "configs/quickstart.py:debug", "--config.rules=fsdp", "--config.model.dropout=0.1",
          "--config.optim.schedule=constant", "--config.mesh.data=1", "--config.mesh.fsdp=-1")  # fmt: skip


def free_port() -> int:
  """A port that is free, and whose neighbour is, where the processes meet."""
  while True:
    with socket.socket() as one, socket.socket() as two:
      one.bind(("localhost", 0))
      port = one.getsockname()[1]
      try:
        two.bind(("localhost", port + 1))
        return port
      except OSError:
        continue


def start(run, count, devices, *more, numbers=None, limit=100, command=("train", *CONFIG)):
  """Starts the processes of one command, each with simulated devices of its own."""
  port = free_port()
  flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={devices}"
  env = os.environ | {
    "JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags,
    "NPROC": str(4 * devices), "LMJAX_COORDINATOR": f"localhost:{port}", "LMJAX_PROCESSES": str(count),
    "LMJAX_TIMEOUT": str(limit),
  }  # fmt: skip
  command = [sys.executable, "-W", "error", "-m", "lmjax", *command, "--workdir", str(run), *more]
  return [
    subprocess.Popen(
      command, cwd=ROOT, env=env | {"LMJAX_PROCESS": str(i)}, text=True,
      stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )
    for i in (range(count) if numbers is None else numbers)
  ]  # fmt: skip


def finish(processes, timeout=200):
  """Returns (exit code, output) of each."""
  try:
    outputs = [process.communicate(timeout=timeout)[0] for process in processes]
  finally:
    for process in processes:
      process.kill()
  return [(process.returncode, text) for process, text in zip(processes, outputs, strict=True)]


def losses(run):
  lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
  return [line["train_loss"] for line in lines if "train_loss" in line]


def wait_for(run, step, processes):
  deadline = time.time() + 150
  while time.time() < deadline and all(process.poll() is None for process in processes):
    if (run / "checkpoints" / str(step)).is_dir():
      return
    time.sleep(0.05)
  raise AssertionError(f"step {step} did not come: {[p.poll() for p in processes]}")


def same_parameters(run, meshes):
  """A checkpoint read onto meshes of 1, 4 and 8 devices holds the same numbers, bit for bit."""
  script = f"""
import jax, numpy as np
from lmjax import experiment
from lmjax.parallel.sharding import use_layout
from lmjax.storage.run import load_state
settings, results = experiment.load_config({str(run)!r}), []
for count in {meshes}:
  built = experiment.build(settings, {str(run)!r}, devices=jax.devices()[:count])
  with use_layout(built.layout):
    state, _ = load_state(built, {str(run)!r}, None)
  results.append([np.asarray(leaf) for leaf in jax.tree.leaves(state.params)])
for other in results[1:]:
  for a, b in zip(results[0], other, strict=True):
    assert (a == b).all()
print("the same")
"""
  env = os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": "--xla_force_host_platform_device_count=8", "NPROC": "32"}
  done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, env=env, capture_output=True, text=True, timeout=120)
  assert "the same" in done.stdout, done.stderr[-2000:]


@pytest.mark.long
def test_two_hosts_are_one_and_a_run_resumes_on_another_number(lmjax, tmp_path):
  """Uninterrupted on one device; 8 devices on two hosts, then 1, then 8 again: the same losses."""
  alone, moved = tmp_path / "alone", tmp_path / "moved"
  lmjax("train", *CONFIG, "--config.steps=12", "--workdir", alone)
  for code, output in finish(start(moved, 2, 4, "--config.steps=4")):
    assert code == 0, output[-2000:]
  same_parameters(moved, [8, 4, 1])
  lmjax("train", *CONFIG, "--config.steps=8", "--workdir", moved)
  same_parameters(moved, [1, 8])
  for code, output in finish(start(moved, 2, 4, "--config.steps=12")):
    assert code == 0, output[-2000:]
  assert len(losses(moved)) == 12
  np.testing.assert_allclose(losses(moved), losses(alone), rtol=2e-4)
  np.testing.assert_allclose(losses(moved)[:4], losses(alone)[:4], rtol=2e-5)
  read = [json.loads((run / "summary.json").read_text()) for run in (alone, moved)]
  assert read[0]["validation_loss"] == pytest.approx(read[1]["validation_loss"], rel=1e-4)


@pytest.mark.long
@pytest.mark.parametrize("rules, axis", [("tp", "model"), pytest.param("sequence", "sequence", marks=pytest.mark.slow)])
def test_hosts_share_a_model_or_a_sequence(lmjax, tmp_path, rules, axis):
  """An axis that spans both hosts: they read the same rows, and the losses are those of one device."""
  alone, both = tmp_path / "alone", tmp_path / "both"
  more = ("--config.steps=3", f"--config.rules={rules}", "--config.mesh.fsdp=1", "--config.evals.every=0")
  lmjax("train", *CONFIG, *more, "--workdir", alone)
  for code, output in finish(start(both, 2, 2, *more, f"--config.mesh.{axis}=4")):
    assert code == 0, output[-2000:]
  np.testing.assert_allclose(losses(both), losses(alone), rtol=2e-5)


@pytest.mark.long
def test_hosts_evaluate_and_generate_what_one_would(lmjax, tmp_path):
  """Three prompts in batches of two, and validation text that fills no whole number of batches."""
  run, prompts = tmp_path / "run", tmp_path / "prompts.txt"
  lmjax("train", *CONFIG, "--config.steps=3", "--config.evals.every=0", "--workdir", run)
  prompts.write_text("Return\nThe class of\nA\n")
  more = ("--prompts_file", prompts, "--batch", "2", "--max_new_tokens", "6", "--output")
  lmjax("generate", "--workdir", run, *more, tmp_path / "alone.jsonl")
  output = finish(start(run, 2, 2, *map(str, more), str(tmp_path / "both.jsonl"), command=("generate",)))
  assert [code for code, _ in output] == [0, 0], output
  assert (tmp_path / "both.jsonl").read_text() == (tmp_path / "alone.jsonl").read_text()
  only = ("--only", "validation", "--config.batch=6", "--output")
  lmjax("evaluate", "--workdir", run, *only, tmp_path / "alone.json")
  output = finish(start(run, 2, 2, *only, str(tmp_path / "both.json"), command=("evaluate",)))
  assert [code for code, _ in output] == [0, 0], output
  assert [("validation_loss" in text) for _, text in output] == [True, False], "one of them prints"
  alone, both = (json.loads((tmp_path / f"{name}.json").read_text()) for name in ("alone", "both"))
  assert both == pytest.approx(alone, rel=2e-5)


@pytest.mark.slow
def test_hosts_generate_while_they_train(lmjax, tmp_path):
  more = ("--config", "configs/scan.py:debug", "--config.steps=4")
  lmjax("train", *more, "--workdir", tmp_path / "alone")
  output = finish(start(tmp_path / "both", 2, 2, command=("train", *more)))
  assert [code for code, _ in output] == [0, 0], output
  alone, both = (json.loads((tmp_path / name / "summary.json").read_text()) for name in ("alone", "both"))
  assert "generation_exact" in alone and both["generation_exact"] == alone["generation_exact"]
  assert both["validation_loss"] == pytest.approx(alone["validation_loss"], rel=1e-4)


@pytest.mark.slow
def test_sigterm_to_one_of_four_makes_all_save_the_same_step_and_leave(tmp_path):
  processes = start(tmp_path, 4, 1, "--config.steps=5000", "--config.checkpoint.every=20", "--config.evals.every=0")
  wait_for(tmp_path, 20, processes)
  processes[2].send_signal(signal.SIGTERM)
  done = finish(processes, 60)
  assert [code for code, _ in done] == [75] * 4, done
  assert "SIGTERM: saved step" in done[0][1]
  step = max(int(path.name) for path in (tmp_path / "checkpoints").iterdir() if path.name.isdigit())
  assert f"saved step {step} " in done[0][1] and step >= 20


@pytest.mark.long
@pytest.mark.parametrize("victim", [pytest.param(0, marks=pytest.mark.slow), 1])
def test_a_killed_host_stops_the_other_and_the_next_start_resumes(tmp_path, victim):
  more = ("--config.steps=5000", "--config.checkpoint.every=20", "--config.evals.every=0")
  processes = start(tmp_path, 2, 1, *more)
  wait_for(tmp_path, 20, processes)
  processes[victim].kill()
  began = time.time()
  done = finish(processes, 60)
  assert time.time() - began < 60
  code, output = done[1 - victim]
  assert code == 69 and "hosts: lost " in output and "rerun the same command to resume" in output, output[-2000:]
  if victim:
    last = max(int(path.name) for path in (tmp_path / "checkpoints").iterdir() if path.name.isdigit())
    done = finish(start(tmp_path, 2, 1, f"--config.steps={last + 5}", *more[1:]))
    assert [code for code, _ in done] == [0, 0] and f"resumes from step {last}" in done[0][1]


@pytest.mark.long
def test_a_missing_host_is_named(tmp_path):
  done = finish(start(tmp_path, 3, 1, numbers=(0, 1), limit=4), 60)
  for code, output in done:
    assert code == 2 and "2 of 3 processes started within 4 s; missing: process 2" in output, output
  ((code, output),) = finish(start(tmp_path, 2, 1, numbers=(1,), limit=4), 60)
  assert code == 2 and "missing: process 0" in output


def test_half_a_description_is_refused(lmjax, tmp_path):
  process = lmjax("train", *CONFIG, "--workdir", tmp_path, env={"LMJAX_PROCESSES": "2"}, check=False)
  assert process.returncode == 2 and "not set: LMJAX_COORDINATOR, LMJAX_PROCESS;" in process.stderr
  wrong = {"LMJAX_COORDINATOR": "localhost:1", "LMJAX_PROCESSES": "2", "LMJAX_PROCESS": "2"}
  process = lmjax("train", *CONFIG, "--workdir", tmp_path, env=wrong, check=False)
  assert process.returncode == 2 and "LMJAX_PROCESS below LMJAX_PROCESSES" in process.stderr
