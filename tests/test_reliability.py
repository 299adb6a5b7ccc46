"""Killed processes, corrupt files, malformed data, a full disk: a clear message, and no progress lost."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time

import h5py
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lmjax import experiment, notebook, storage
from lmjax.__main__ import main
from lmjax.checkpoint import Checkpoints, data_state
from lmjax.data.tokenizers.base import Bytes
from lmjax.storage import huggingface
from lmjax.storage.convert import convert
from lmjax.storage.start import load
from lmjax.testing import init_params, tiny_decoder
from tests.conftest import ROOT
from tests.fuzz.readers import READERS

ARGUMENTS = ("--config", "configs/quickstart.py:debug", "--config.steps=120", "--config.checkpoint.every=15",
             "--config.evals.every=60", "--config.model.dropout=0.1", "--config.optim.schedule=constant")  # fmt: skip


def start(run, *more, **options):
  return subprocess.Popen(
    [sys.executable, "-W", "error", "-m", "lmjax", "train", *ARGUMENTS, "--workdir", str(run), *more],
    cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    env=os.environ | {"JAX_PLATFORMS": "cpu"}, **options,
  )  # fmt: skip


def finish(process, code=0):
  out, err = process.communicate(timeout=300)
  assert process.returncode == code, f"{process.returncode}: {err[-2000:]}\n{out[-2000:]}"
  return out, err


def wait_for_step(run, step, process):
  """Returns when metrics.jsonl has passed a step."""
  deadline = time.time() + 120
  while time.time() < deadline and process.poll() is None:
    file = run / "metrics.jsonl"
    if file.exists() and any(f'"step": {s},' in file.read_text() for s in range(step, step + 20)):
      return
    time.sleep(0.01)
  raise AssertionError(f"step {step} did not come: {process.stderr.read()[-2000:]}")


def parameters(run):
  loaded = storage.open(run).load()
  return loaded.params, loaded.step


def assert_same(first, second):
  (a, step_a), (b, step_b) = parameters(first), parameters(second)
  assert step_a == step_b
  jax.tree.map(np.testing.assert_array_equal, a, b)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
  """A run without interruption."""
  run = tmp_path_factory.mktemp("whole") / "run"
  finish(start(run))
  return run


def checkpoints(run):
  return sorted(int(p.name) for p in (run / "checkpoints").iterdir() if p.name.isdigit())


def test_killed_and_resumed_is_uninterrupted_bit_for_bit(whole, tmp_path):
  """A second command on the same folder is refused while the first one lives, and then starts at once."""
  run = tmp_path / "run"
  process = start(run)
  wait_for_step(run, 40, process)
  process.send_signal(signal.SIGSTOP)  # it keeps its folder as long as it lives
  before = {path: path.stat().st_mtime_ns for path in run.rglob("*")}
  _, err = finish(start(run), 2)
  assert "is used by another run" in err and f"process {process.pid} of" in err and err.count("\n") == 1
  assert "lmjax train --config configs/quickstart.py:debug" in err
  assert {path: path.stat().st_mtime_ns for path in run.rglob("*")} == before
  process.send_signal(signal.SIGKILL)
  process.communicate()
  out, _ = finish(start(run))
  assert "resumes from step" in out
  assert_same(run, whole)
  steps = [
    json.loads(line)["step"] for line in (run / "metrics.jsonl").read_text().splitlines() if "train_loss" in line
  ]
  assert steps == list(range(1, 121)), "each step is logged once"


def test_sigterm_saves_and_leaves_with_its_own_code(whole, tmp_path):
  run = tmp_path / "run"
  process = start(run)
  wait_for_step(run, 20, process)
  began = time.time()
  process.send_signal(signal.SIGTERM)
  out, _ = finish(process, 75)
  assert time.time() - began < 30
  assert "SIGTERM: saved step" in out
  saved = int(out.split("saved step ")[1].split()[0])
  assert checkpoints(run)[-1] == saved
  assert f"resumes from step {saved}" in finish(start(run))[0]
  assert_same(run, whole)


@pytest.mark.long
def test_a_corrupt_checkpoint_is_named_and_skipped(whole, tmp_path):
  run = tmp_path / "run"
  finish(start(run, "--config.steps=45"))
  assert checkpoints(run) == [30, 45]
  for path in (run / "checkpoints" / "45").rglob("*"):
    if path.is_file() and path.parent.name == "d":
      path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
  (run / "checkpoints" / "60.orbax-checkpoint-tmp").mkdir()  # as a kill while writing leaves it
  out, _ = finish(start(run))
  assert "45 is corrupt" in out and "resumes from step 30" in out
  assert_same(run, whole)
  for path in (run / "checkpoints").rglob("*"):
    if path.is_file():
      path.write_bytes(b"")
  _, err = finish(start(run, "--config.steps=130"), 2)
  assert "has no complete checkpoint" in err and err.count("\n") == 1


@pytest.mark.long
def test_a_flipped_bit_is_found_and_the_checkpoint_before_is_used(whole, tmp_path, capsys):
  run = tmp_path / "run"
  shutil.copytree(whole, run)
  older, newest = checkpoints(run)[-2:]
  assert main(["show", str(run), "--verify"]) == 0
  out = capsys.readouterr().out
  assert f"step {newest}: " in out and out.count("as they were written") == len(checkpoints(run)), out
  assert "config and tokenizer: can be read" in out and "all finite" in out and "bytes" in out

  data = max((run / "checkpoints" / str(newest)).rglob("*"), key=lambda path: path.stat().st_size * path.is_file())
  content = bytearray(data.read_bytes())
  content[len(content) // 2] ^= 4
  data.write_bytes(content)
  assert main(["show", str(run), "--verify"]) == 2
  out, err = capsys.readouterr()
  assert f"step {newest}: corrupt: " in out and data.name in out and out.count("as they were written") >= 1
  assert err == f"lmjax: {run} is corrupt: step {newest}\n"
  assert main(["show", str(run), "--values", "--depth", "1", "--step", str(newest)]) == 2
  capsys.readouterr()

  saved = storage.open(run)
  assert saved.step == newest, "from the metadata, which are not corrupt"
  name = next(iter(saved.leaves))
  np.testing.assert_array_equal(saved.read(name), storage.open(run, older).read(name))
  assert saved.step == older and capsys.readouterr().err.count("is corrupt, skipped") == 1
  assert storage.open(run).load().step == older
  opened = storage.open(run)
  assert opened.parameters() and opened.step == older
  assert all(f"/{older}/" in str(path) for path in storage.open(run).files().values())


def test_weights_that_are_not_finite_are_reported(whole, tmp_path, capsys):
  storage.open(whole).load()
  assert capsys.readouterr().err == ""
  run = experiment.build(experiment.load_config(whole), whole)
  state = run.state()
  table = state.params["model"]["embed"]["table"]
  state.params["model"]["embed"]["table"] = table.at[3, :2].set(np.nan).at[4, 0].set(np.inf)
  shutil.copytree(whole, tmp_path / "run", ignore=shutil.ignore_patterns("checkpoints"))
  writer = Checkpoints(tmp_path / "run")
  writer.save(0, state, data_state(jax.random.key(0), np.zeros((1, 1)), 0), None)
  writer.close()
  line = "has NaN or infinite weights: 3 in model/embed/table\n"
  loaded = notebook.load(tmp_path / "run").loaded
  assert capsys.readouterr().err == f"lmjax: warning: the model {line}"
  start = experiment.Start(str(tmp_path / "run"))
  load(start, run.named, loaded.layout)
  assert capsys.readouterr().err == f"lmjax: warning: {tmp_path / 'run'} {line}"
  assert main(["show", str(tmp_path / "run"), "--verify"]) == 0
  out = capsys.readouterr().out
  assert "have NaN or infinite weights, first embed/table (3)" in out.replace("model/", "")


@pytest.mark.parametrize("form", ["huggingface", "gguf-f32", "gguf-f16", "gguf-q8_0", "bilm"])
def test_weights_that_are_not_finite_are_reported_whatever_the_format(form, tmp_path, capsys):
  folder = tmp_path / "folder"
  if form == "bilm":
    folder.mkdir()
    READERS["bilm"].make(folder)
    with h5py.File(folder / "lm_weights.hdf5", "r+") as file:
      file["CNN_proj/b_proj"][0] = np.inf
  else:
    model = tiny_decoder(vocabulary=257, depth=1)
    params = init_params(model, {"inputs": jnp.zeros((1, 4), jnp.int32)})["params"]
    params["norm"]["bias"] = params["norm"]["bias"].at[0].set(np.nan)
    huggingface.save(folder, model, {"model": params, "heads": {}}, Bytes())
    if form != "huggingface":
      convert(folder, tmp_path / "model.gguf", form=form)
      folder = tmp_path / "model.gguf"
  capsys.readouterr()
  storage.open(folder).load()
  (line,) = capsys.readouterr().err.splitlines()
  assert line.startswith("lmjax: warning: the model has NaN or infinite weights: 1 in model/")
  assert main(["show", str(folder), "--verify"]) == 0
  assert "1 of" in (out := capsys.readouterr().out) and "have NaN or infinite weights" in out


@pytest.mark.long
def test_a_full_disk_ends_in_a_message_and_keeps_the_last_checkpoint(tmp_path):
  run = tmp_path / "run"
  finish(start(run, "--config.steps=15"))

  command = [sys.executable, "-m", "lmjax", "train", *ARGUMENTS, "--workdir", str(run)]
  process = subprocess.run(  # no file may grow beyond 100 kB
    ["bash", "-c", 'trap "" XFSZ; ulimit -f 100; exec "$@"', "bash", *command],
    cwd=ROOT, capture_output=True, text=True, timeout=200,
    env=os.environ | {"JAX_ENABLE_COMPILATION_CACHE": "false", "JAX_PLATFORMS": "cpu"},
  )  # fmt: skip
  assert process.returncode == 2, process.stderr[-2000:]
  assert "Traceback" not in process.stderr
  last = process.stderr.strip().splitlines()[-1]
  assert "could not be written" in last and "the last complete one is step 15" in last and "File too large" in last
  assert parameters(run)[1] == 15
  assert "resumes from step 15" in finish(start(run, "--config.steps=20"))[0]


def test_a_loss_that_is_not_finite_stops_the_run(tmp_path):
  run = tmp_path / "run"
  _, err = finish(start(run, "--config.optim.peak_lr=1e30", "--config.optim.clip=0"), 2)
  assert "the loss is" in err and "peak_lr" in err and err.count("\n") == 1


def test_too_many_malformed_records_stop_the_run(tmp_path):
  good, malformed = json.dumps({"text": "some words here"}), "{broken"
  (tmp_path / "a.jsonl").write_text("\n".join([good] * 95 + [malformed] * 5) * 3)
  source = "lmjax.data.sources.records:JsonLines"
  _, err = finish(
    start(
      tmp_path / "run",
      f"--config.data.source.kind={source}",
      f"--config.data.source.files={tmp_path}/a.jsonl",
      "--config.data.source.split=:",
    ),  # fmt: skip
    2,
  )
  assert "more than 1 %" in err and "a.jsonl:" in err
  skipped = (tmp_path / "run" / "debug.log").read_text().splitlines()
  assert len(skipped) > 1 and all("a.jsonl:" in line and "is not JSON" in line for line in skipped)
