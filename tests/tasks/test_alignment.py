"""Runs from supervised fine-tuning to DPO and a reward model, each from the run before it."""

import json
import math

import pytest

from lmjax.__main__ import main

SMALL = ["--config.steps=12", "--config.evals.every=12", "--config.checkpoint.every=12", "--config.log.every=1"]
SMALL += ["--config.data.length=96", "--config.mesh={}", "--config.optim.peak_lr=3e-3", "--config.optim.warmup=2"]
SPLITS = {"source": ":5%", "validation": "99.5%:"}


def train(workdir, config, *options):
  """Trains on this Python's documentation, and returns the metrics of each step."""
  kind = (
    "python_dialogues:PythonDocDialogues" if config.startswith("sft") else "python_preferences:PythonDocPreferences"
  )
  data = [
    f"--config.data.{part}={{'kind': 'lmjax.data.sources.{kind}', 'split': '{split}'}}"
    for part, split in SPLITS.items()
  ]
  assert main(["train", "--config", f"configs/{config}", "--workdir", str(workdir), *SMALL, *data, *options]) == 0
  lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
  return [line for line in lines if "samples" not in line]


@pytest.mark.long
def test_a_policy_learns_from_comparisons_after_fine_tuning(tmp_path, capsys):
  tiny = ["width=64", "depth=2", "heads=4", "kv_heads=2", "head_size=16", "mlp=128"]
  options = [f"--config.model.{setting}" for setting in tiny]
  sft = train(tmp_path / "sft", "sft.py", *options, "--config.data.tokenizer.size=512")
  assert sft[-1]["validation_loss"] < next(line["train_loss"] for line in sft if line["step"] == 1)
  lora = ["--config.task.reference=base", "--config.transform.kind=lmjax.compression.lora:LoRA"]
  for name, extra in (("dpo", []), ("lora", lora)):
    lines = train(tmp_path / name, f"dpo.py:start={tmp_path}/sft", *extra)
    first = next(line for line in lines if line["step"] == 1)
    assert math.isclose(first["train_loss"], math.log(2), rel_tol=1e-5) and first["reward_margin"] == 0
    assert lines[-1]["validation_loss"] < math.log(2) and lines[-1]["validation_accuracy"] > 0.6
    sources = json.loads((tmp_path / name / "sources.json").read_text())
    assert set(sources) == ({"start"} if extra else {"start", "reference"})
  reward = train(tmp_path / "reward", f"reward.py:start={tmp_path}/sft")
  assert reward[-1]["validation_accuracy"] > max(0.6, reward[-1]["validation_length_accuracy"])
  capsys.readouterr()
  assert main(["chat", "--workdir", str(tmp_path / "lora"), "--message", "Parse a document", "--temperature", "0"]) == 0
  assert capsys.readouterr().out
