"""A policy on several hosts: its rollouts, rewards and updates are those of one."""

import json

import numpy as np
import pytest

from tests.multidevice.test_hosts import finish, start

COMMAND = (
  "train", "--config", "configs/ppo.py:debug", "--config.steps=4", "--config.evals.every=4", "--config.mesh.data=-1",
  "--config.data.source={'kind': 'lmjax.data.sources.python_prompts:PythonDocPrompts', 'split': ':2%'}",
)  # fmt: skip
KEYS = ("reward", "entropy", "answer_tokens", "train_loss", "gradient_norm", "explained_variance", "policy_reward")


def logged(run):
  lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
  return [(line["step"], key, line[key]) for line in lines for key in KEYS if key in line]


@pytest.mark.slow
def test_two_hosts_are_one(tmp_path):
  """The answers are written, scored and learned from together; rows are divided between the hosts."""
  results = {}
  for name, processes, devices in (("one", 1, 1), ("two", 2, 1)):
    for code, text in finish(start(tmp_path / name, processes, devices, command=COMMAND), timeout=400):
      assert code == 0, text[-1500:]
    results[name] = logged(tmp_path / name)
  assert len(results["one"]) > 20
  for one, two in zip(results["one"], results["two"], strict=True):
    assert one[:2] == two[:2]
    np.testing.assert_allclose(two[2], one[2], rtol=1e-3, atol=1e-4, err_msg=str(one))
