"""Schedules against values computed by hand."""

import math

import pytest

from lmjax.optim.schedules import schedule


@pytest.mark.parametrize(
  "name, expected",
  [
    # peak 2, 4 steps of warm-up, 20 steps, final a tenth; steps 0, 1, 3, 4, 12, 20, 30
    ("cosine", [0.5, 1.0, 2.0, 2.0, 2 * (0.1 + 0.9 * 0.5), 0.2, 0.2]),
    ("linear", [0.5, 1.0, 2.0, 2.0, 1.1, 0.2, 0.2]),
    (
      "inverse_sqrt",
      [0.5, 1.0, 2.0, 2.0, 2 * math.sqrt(4 / 12), 2 * math.sqrt(4 / 20), 2 * math.sqrt(4 / 30)],
    ),
    ("warmup_stable_decay", [0.5, 1.0, 2.0, 2.0, 2.0, 0.2, 0.2]),
    ("constant", [0.5, 1.0, 2.0, 2.0, 2.0, 2.0, 2.0]),
  ],
)
def test_values(name, expected):
  rate = schedule(name, peak=2.0, steps=20, warmup=4, final=0.1, decay=5)
  assert [float(rate(step)) for step in (0, 1, 3, 4, 12, 20, 30)] == pytest.approx(expected, rel=1e-5)


def test_the_falling_end():
  rate = schedule("warmup_stable_decay", peak=1.0, steps=20, warmup=0, final=0.0, decay=5)
  assert [float(rate(step)) for step in (15, 16, 19)] == pytest.approx([1.0, 0.8, 0.2], rel=1e-5)
