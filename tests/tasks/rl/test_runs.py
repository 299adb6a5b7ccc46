"""Whole runs of policies: resuming after a kill, a reference that is the base of LoRA, a reward model as the judge."""

import json

import numpy as np
import pytest

from lmjax import config, experiment
from lmjax.__main__ import main
from lmjax.inference.chat import Chat
from lmjax.storage.base import LoadedModel
from lmjax.storage.run import RunFolder
from lmjax.tasks.reward import RewardModel
from lmjax.tasks.rl.ppo import PPO
from lmjax.utils.errors import UserError

SMALL = ["--config.steps=8", "--config.evals.every=8", "--config.checkpoint.every=4", "--config.batch=4"]
SMALL += ["--config.data.source={'kind': 'lmjax.data.sources.python_prompts:PythonDocPrompts', 'split': ':2%'}"]


def train(workdir, name, *options, code=0):
  arguments = ["train", "--config", f"configs/{name}", "--workdir", str(workdir), *SMALL, *options]
  assert main(arguments) == code
  return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def parameters(workdir):
  run = RunFolder(workdir)
  return {name: run.read(name) for name in run.leaves}


@pytest.mark.long
def test_a_run_killed_in_a_rollout_ends_with_the_same_parameters(tmp_path, monkeypatch):
  """The kill comes while the second rollout is learned from: it is repeated, with the carried coefficient of the KL."""
  options = ["--config.task.target_kl=0.5", "--config.task.kl_horizon=100", "--config.task.epochs=2"]
  whole = train(tmp_path / "whole", "ppo.py:debug", *options)
  train(tmp_path / "cut", "ppo.py:debug", *options, "--config.steps=4")
  collect = PPO.collect

  def killed(self, *arguments):
    yield next(iter(collect(self, *arguments)))
    raise RuntimeError("killed")

  monkeypatch.setattr(PPO, "collect", killed)
  with pytest.raises(RuntimeError, match="killed"):
    train(tmp_path / "cut", "ppo.py:debug", *options, "--traceback")
  assert RunFolder(tmp_path / "cut").step == 4
  monkeypatch.setattr(PPO, "collect", collect)
  cut = train(tmp_path / "cut", "ppo.py:debug", *options)
  one, other = parameters(tmp_path / "whole"), parameters(tmp_path / "cut")
  assert one.keys() == other.keys() and all(np.array_equal(one[key], other[key]) for key in one)
  values = [[(line["step"], line["reward"]) for line in lines if "reward" in line] for lines in (whole, cut)]
  assert values[0] == values[1] and len(values[0]) == 8
  coefficients = [line["kl_coefficient"] for line in whole if "kl_coefficient" in line]
  assert coefficients[0] == pytest.approx(0.05) and coefficients[-1] == pytest.approx(0.05 * 0.992, rel=1e-4)


@pytest.mark.long
def test_from_a_reward_model_and_with_lora(tmp_path, capsys):
  """The KL to the base of LoRA starts at 0 and the reward model is in no checkpoint; then a reference at a path."""
  sft, reward = tmp_path / "sft", tmp_path / "reward"
  assert main(["train", "--config", "configs/sft.py:debug", "--workdir", str(sft), "--config.steps=2"]) == 0
  own = ["--config.start.path=" + str(sft), "--config.data.tokenizer={'path': '%s/tokenizer'}" % sft]  # noqa: UP031
  debug = ["train", "--config", "configs/reward.py:debug", "--config.steps=2"]
  assert main([*debug, "--workdir", str(reward), *own]) == 0
  judge = "[{'kind': 'lmjax.tasks.rl.rewards:ModelReward', 'path': '%s'}]" % reward  # noqa: UP031
  start = [*own, "--config.model.length=96", f"--config.task.rewards={judge}"]
  for name, extra in (
    ("ppo.py:debug", ["--config.task.reference=base", "--config.transform.kind=lmjax.compression.lora:LoRA"]),
    ("grpo.py:debug", [f"--config.task.reference={sft}"]),
  ):
    workdir = tmp_path / name.partition(".")[0]
    lines = train(workdir, name, *start, *extra)
    first = next(line for line in lines if line["step"] == 1)
    assert first["kl"] == pytest.approx(0, abs=1e-4) and first["clip_fraction"] == 0
    assert 0 <= lines[-1]["policy_win_rate"] <= 1
    sources = json.loads((workdir / "sources.json").read_text())
    assert "reward_0" in sources
    assert not any("reward" in key for key in parameters(workdir))
  capsys.readouterr()
  assert main(["train", "--config", "configs/ppo.py:debug", "--workdir", str(tmp_path / "no"), *SMALL, *start,
               f"--config.task.reference={reward}"]) == 2  # fmt: skip
  assert "for RewardModel, predicts no tokens" in capsys.readouterr().err


def test_the_rows_of_an_update_are_planned():
  """Prompts x samples / minibatches; microbatches divide them."""
  settings = config.load("configs/grpo.py:debug", {"batch": "6", "task.samples": "4", "task.minibatches": "3"})
  run = experiment.build(settings)
  assert run.rows == 8 and run.task.spec(6, 48)["inputs"].shape == (8, 48)
  assert run.task.reads(6, 32)["inputs"].shape == (6, 32)


def test_chat_talks_to_a_policy_and_not_to_a_reward_model():
  """A value head does not keep a decoder from writing; a model that predicts no tokens is refused."""
  run = experiment.build(config.load("configs/ppo.py:debug"))
  Chat(LoadedModel(run.task, run.tokenizer, 48, run.layout, {}, 0, {}))
  with pytest.raises(UserError, match="a decoder that predicts tokens"):
    Chat(LoadedModel(RewardModel(run.task.model), run.tokenizer, 48, run.layout, {}, 0, {}))
