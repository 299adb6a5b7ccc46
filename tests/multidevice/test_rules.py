"""Sharding, in processes of their own with eight simulated devices."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest

from tests.conftest import ROOT


# As `--devices 8` sets them; with fewer threads than collectives may hold, simulated devices wait for each other.
def eight():
  flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=8"
  return os.environ | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu", "NPROC": "32"}


def run(module, *arguments, timeout=400):
  """Runs a module of this folder on eight simulated devices, warnings being errors, and returns what it prints."""
  command = [sys.executable, "-W", "error", "-m", f"tests.multidevice.{module}", *arguments]
  process = subprocess.run(command, cwd=ROOT, env=eight(), capture_output=True, text=True, timeout=timeout)
  assert process.returncode == 0, process.stderr[-3000:]
  return process.stdout


@pytest.mark.long
def test_every_rule_set_gives_the_loss_of_one_device():
  output = run("rules")
  assert output.count("same loss under") == 6 and "splash under a mesh" in output
  assert "one sum for all chunks" in output and "each device scores its own rows" in output


@pytest.mark.long
def test_each_device_reads_its_own_part_of_a_folder():
  assert "each device read its own part" in run("folder")


@pytest.mark.long
def test_leaf_types_are_sharded_as_the_parameters_they_represent():
  output = run("toy_leaf")
  assert "leaf types are split as their parameters" in output and output.count("same loss of a leaf type") == 2


@pytest.mark.long
def test_quantized_leaves_and_masks_are_split_as_their_parameters():
  output = run("quantized")
  assert "keep their groups whole" in output and output.count("same logits of quantized") == 2 and "masks" in output


@pytest.mark.slow
def test_lora_is_the_same_under_every_rule_set():
  output = run("lora")
  assert "factors are split as their kernels" in output and output.count("same loss of LoRA") == 6


@pytest.mark.slow
def test_every_family_has_the_same_loss_under_every_rule_set():
  families = ("BERT", "LSTM", "ELMo", "T5", "Transformer", "Llama")
  output = run("rules", *families, timeout=600)
  assert output.count("same loss of") == 5 * len(families) and output.count("devices") == 4


@pytest.mark.slow
def test_experts_on_devices_of_their_own_give_the_loss_of_one_device():
  assert run("experts").count("same loss of experts") == 4


@pytest.mark.long
def test_a_7b_state_is_initialised_in_parts():
  assert "initialised in parts" in run("sharded_init", timeout=200)


@pytest.mark.long
def test_the_command_line_simulates_devices(lmjax, tmp_path):
  """A checkpoint written on eight devices opens on one."""
  workdir = tmp_path / "run"
  output = lmjax(
    "train", "--config", "configs/quickstart.py:debug", "--workdir", workdir, "--devices", 8, "--config.rules=fsdp_tp",
    "--config.mesh.data=2", "--config.mesh.fsdp=2", "--config.mesh.model=2",
  ).stdout  # fmt: skip
  assert "on each of 8 devices" in output
  assert len(lmjax("generate", "--workdir", workdir, "--prompt", "The", "--max_new_tokens", 4).stdout) > 3


@pytest.mark.slow
def test_a_suite_has_the_scores_of_one_device(lmjax, tmp_path):
  """Log-likelihoods and greedy answers on two devices are those on one, of a run folder and of a converted one."""
  workdir = tmp_path / "run"
  lmjax("train", "--config", "configs/quickstart.py:debug", "--workdir", workdir, "--config.model.kv_heads=4")
  lmjax("convert", "--input", workdir, "--output", tmp_path / "hf")
  docs = [{"q": f"The {word} was", "a": f" {word}", "b": " so good", "gold": 0} for word in ("man", "sea", "day")]
  (tmp_path / "t.jsonl").write_text("".join(json.dumps(doc) + "\n" for doc in docs))
  base = {"dataset_path": "json", "dataset_kwargs": {"data_files": {"test": "t.jsonl"}}, "test_split": "test"}
  choose = {"task": "choose", "output_type": "multiple_choice", "doc_to_text": "{{q}}", "doc_to_target": "gold",
            "doc_to_choice": "{{[a, b]}}"}  # fmt: skip
  write = {"task": "write", "output_type": "generate_until", "doc_to_text": "{{q}}", "doc_to_target": "{{a}}",
           "generation_kwargs": {"max_gen_toks": 8}}  # fmt: skip
  for task in (choose, write):
    (tmp_path / f"{task['task']}.yaml").write_text(json.dumps(base | task))
  (tmp_path / "all.yaml").write_text(json.dumps({"group": "all", "task": ["choose", "write"]}))
  records = {}
  sharded = ("--devices", 2, "--config.mesh.fsdp=2", "--config.mesh.data=1", "--config.rules=fsdp")
  for devices, folder, options in (
    (1, workdir, ()),
    (2, workdir, ("--devices", 2)),
    ("2 hf", tmp_path / "hf", sharded),
  ):
    output = tmp_path / f"on-{devices}"
    lmjax("evaluate", "--workdir", folder, "--suite", tmp_path / "all.yaml", "--output", output, *options)
    for name in ("choose", "write"):
      lines = (output / f"{name}.jsonl").read_text().splitlines()[1:]
      records[name, devices] = sorted((json.loads(line) for line in lines), key=lambda record: record["item"])
  for other in (2, "2 hf"):
    for one, two in zip(records["choose", 1], records["choose", other], strict=True):
      np.testing.assert_allclose(one["log_likelihoods"], two["log_likelihoods"], rtol=1e-5)
    assert [r["answer"] for r in records["write", 1]] == [r["answer"] for r in records["write", other]]
