"""LoRA in run folders: what a checkpoint holds, resuming, opening and exporting."""

import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lmjax import storage
from lmjax.__main__ import main
from lmjax.storage.convert import convert
from lmjax.storage.huggingface.adapter import CONFIG
from lmjax.testing import fake_batch
from lmjax.utils import pytree
from lmjax.utils.errors import UserError

DEBUG = ["--config", "configs/gpt2.py:size=124m,debug", "--config.model.kv_heads=4", "--config.evals.every=0"]
LORA = ["--config.transform.kind=lmjax.compression.lora:LoRA", "--config.transform.targets=(query|value|up)/kernel"]
FAST = ["--config.optim.warmup=0", "--config.optim.peak_lr=0.01"]


def train(workdir, *options):
  assert main(["train", *DEBUG, *options, "--workdir", str(workdir)]) == 0
  return workdir


@pytest.fixture(scope="module")
def base(tmp_path_factory):
  """A Hugging Face folder, of a run of one step."""
  folder = tmp_path_factory.mktemp("lora")
  train(folder / "run", "--config.steps=1")
  assert main(["convert", "--input", str(folder / "run"), "--output", str(folder / "base")]) == 0
  return folder / "base"


@pytest.fixture(scope="module")
def run(base):
  options = [*LORA, *FAST, f"--config.start.path={base}", "--config.steps=4", "--config.checkpoint.every=2"]
  return train(base.parent / "lora", *options)


def params_of(path, **options):
  return {name: np.asarray(array) for name, array in storage.open(path, **options).parameters().items()}


def logits(path):
  loaded = storage.open(path).load()
  return np.asarray(loaded.task.forward(loaded.params, fake_batch(loaded.task, 2, 16)).logits)


def test_a_checkpoint_holds_factors_alone(run):
  """And their moments: it is small, and the run names the folder of its base."""
  leaves = storage.open(run).leaves
  assert leaves and all(name.endswith(("kernel/a", "kernel/b")) for name in leaves)
  trained = sum(leaf.count for leaf in leaves.values())
  whole = sum(leaf.count for leaf in storage.open(run.parent / "run").leaves.values())
  assert trained < whole / 4

  def stored(folder):
    return sum(file.stat().st_size for file in (folder / "checkpoints").rglob("*") if file.is_file())

  assert stored(run) / 2 < stored(run.parent / "run") / 5, "of each checkpoint"
  assert set(json.loads((run / "sources.json").read_text())) == {"start"}


def test_a_run_resumes_bit_for_bit(base, run, tmp_path):
  options = [*LORA, *FAST, f"--config.start.path={base}", "--config.checkpoint.every=2"]
  train(tmp_path / "run", *options, "--config.steps=2", "--config.optim.schedule=constant")
  train(tmp_path / "run", *options, "--config.steps=4", "--config.optim.schedule=constant")
  train(tmp_path / "whole", *options, "--config.steps=4", "--config.optim.schedule=constant")
  one, other = storage.open(tmp_path / "run"), storage.open(tmp_path / "whole")
  for name in one.leaves:
    np.testing.assert_array_equal(one.read(name), other.read(name), err_msg=name)


@pytest.mark.long
def test_a_run_opens_and_is_exported_merged(base, run, tmp_path):
  """Away from its targets the model is the base; the export stands alone."""
  merged, before = params_of(run), params_of(base)
  for name, array in before.items():
    is_target = any(target in name for target in ("query/kernel", "value/kernel", "up/kernel"))
    assert np.any(merged[name] != array) == is_target, name
  loaded = storage.open(run).load()
  assert all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(loaded.params))
  for name, array in pytree.named_leaves(loaded.params).items():
    np.testing.assert_array_equal(array, merged[name])
  assert main(["convert", "--input", str(run), "--output", str(tmp_path / "merged")]) == 0
  np.testing.assert_allclose(logits(tmp_path / "merged"), logits(run), atol=1e-6)
  first = storage.open(run, step=2).parameters()
  assert any(np.any(np.asarray(first[name]) != array) for name, array in merged.items())


@pytest.mark.long
def test_a_run_is_exported_as_an_adapter(base, run, tmp_path):
  arguments = ["convert", "--input", str(run), "--format", "peft", "--output", str(tmp_path / "adapter")]
  assert main(arguments) == 0
  assert json.loads((tmp_path / "adapter" / CONFIG).read_text())["base_model_name_or_path"] == str(base)
  np.testing.assert_allclose(logits(tmp_path / "adapter"), logits(run), atol=1e-5)
  with pytest.raises(UserError, match="is not empty"):
    convert(run, tmp_path / "adapter", form="peft")
  with pytest.raises(UserError, match="not a run with transform.kind"):
    convert(run.parent / "run", tmp_path / "none", form="peft")


@pytest.mark.long
def test_from_scratch_the_base_is_made_again_from_the_seed(base, tmp_path):
  train(tmp_path / "run", *LORA, *FAST, "--config.steps=1", "--config.seed=3")
  merged = params_of(tmp_path / "run")
  train(tmp_path / "plain", "--config.steps=1", "--config.seed=3", "--config.optim.peak_lr=0.0")
  for name, array in params_of(tmp_path / "plain").items():
    is_target = any(target in name for target in ("query/kernel", "value/kernel", "up/kernel"))
    assert is_target or np.array_equal(merged[name], array), name
  with pytest.raises(UserError, match="it started from scratch; .*--base"):
    convert(tmp_path / "run", tmp_path / "adapter", form="peft")


def test_a_missing_base_is_named(run, tmp_path):
  shutil.copytree(run, tmp_path / "run")
  record = json.loads((tmp_path / "run" / "sources.json").read_text())
  record["start"]["path"] = str(tmp_path / "gone")
  (tmp_path / "run" / "sources.json").write_text(json.dumps(record))
  config = json.loads((tmp_path / "run" / "config.json").read_text())
  config["start"]["path"] = str(tmp_path / "gone")
  (tmp_path / "run" / "config.json").write_text(json.dumps(config))
  with pytest.raises(UserError, match="the source 'start' at .*gone is missing"):
    jnp.asarray(storage.open(tmp_path / "run").parameters()["model/embed/table"])


def test_a_plan_shows_what_is_trained(capsys):
  """And the state of full fine-tuning beside that of the run."""
  options = ["plan", *DEBUG, *LORA, "--topology", "cpu:1", "--json"]
  main(options)
  report = json.loads(capsys.readouterr().out)
  trained = report["trained"]
  assert trained["parameters"] == 7168 and report["parameters"] > 80_000
  assert 3 * 4 * trained["parameters"] < trained["state_bytes"] < trained["full_state_bytes"] / 2
  main(options[:-1])
  assert "trained" in (shown := capsys.readouterr().out) and "if all were trained" in shown
