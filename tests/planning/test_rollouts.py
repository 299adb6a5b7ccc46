"""Plans of runs that learn from their own answers: writing and scoring them are parts besides learning."""

import importlib.util
import json

import pytest

from lmjax.__main__ import main
from lmjax.planning.tables import report_table


@pytest.mark.tpu
@pytest.mark.skipif(not importlib.util.find_spec("libtpu"), reason="needs pip install 'lmjax[plan]'")
def test_rollout_scoring_and_learning_are_compiled(capsys):
  """Each has room for the whole state, and a step has its share of the time of a rollout."""
  arguments = ["plan", "--config", "configs/grpo.py:debug", "--topology", "v5e:2x2", "--json"]
  more = ["--config.task.epochs=3", "--config.task.minibatches=4"]
  assert main([*arguments, *more]) == 0
  report = json.loads(capsys.readouterr().out)
  parts = report["parts"]
  assert {name: part["per_rollout"] for name, part in parts.items()} == {"learning": 12, "rollout": 1, "scoring": 4}
  assert all(part["bytes_per_device"] > report["trained"]["state_bytes"] for part in parts.values())
  total = sum(part["seconds"] * part["per_rollout"] for part in parts.values())
  assert report["seconds_per_step"] == pytest.approx(total / 12) and report["fits"]
  table = report_table(report)
  assert {"learning", "rollout", "scoring"} <= set(table.columns[0]._cells)
