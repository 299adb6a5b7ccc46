"""Parameter shapes and losses of every family and objective are what they were: see tests/snapshots.py."""

import numpy as np
import pytest

from tests import snapshots

WANTED = snapshots.load()


def test_every_case_has_a_snapshot():
  assert set(WANTED) == set(snapshots.CASES), "python -m tests.snapshots"


# The fast tests of the configs compile the same steps.
@pytest.mark.parametrize("name", [n if n == "gpt2" else pytest.param(n, marks=pytest.mark.long) for n in WANTED])
def test_parameters_and_losses_are_unchanged(name):
  recorded = snapshots.record(name)
  assert recorded["parameters"] == WANTED[name]["parameters"]
  np.testing.assert_allclose(recorded["losses"], WANTED[name]["losses"], rtol=snapshots.RTOL.get(name, 1e-5))
