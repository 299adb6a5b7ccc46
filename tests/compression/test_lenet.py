"""The network of benchmarks/lottery: its size, and that the smallest weights of a few rounds were the right ones."""

import json

import numpy as np
import pytest

from lmjax import config, experiment
from lmjax.__main__ import main
from lmjax.inference import lottery
from tests.conftest import DATA

MNIST = DATA / "img_mnist"
CONFIG = f"benchmarks/lottery/lenet.py:folder={MNIST},debug"


def test_the_network_has_as_many_parameters_as_the_paper_says(tmp_path):
  assert experiment.build(config.load(CONFIG), tmp_path).parameters == 266_610


@pytest.mark.slow
@pytest.mark.skipif(not MNIST.exists(), reason="needs img_mnist in $LMJAX_DATA")
def test_tickets_of_two_rounds_are_better_than_the_controls(tmp_path):
  """After 40 steps: they start with the weights that training had made large."""
  rates = ["--rate", "hidden=0.2", "--rate", "output=0.1"]
  assert main(["lottery", "--config", CONFIG, "--workdir", str(tmp_path), "--rounds", "2", *rates]) == 0
  rows = {(row["round"], row["arm"]): row for row in json.loads((tmp_path / "lottery.json").read_text())}
  kept = [(1 - rate) ** 2 for rate in (0.2, 0.2, 0.1)]
  sizes = (784 * 300, 300 * 100, 100 * 10)
  assert rows[2, "ticket"]["remaining"] == pytest.approx(np.average(kept, weights=sizes), abs=1e-4)
  for control in lottery.CONTROLS:
    assert rows[2, "ticket"]["loss"] < 0.9 * rows[2, control]["loss"]
