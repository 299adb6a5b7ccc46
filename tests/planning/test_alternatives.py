"""What would fit, where a step does not: the smallest change of each kind, in few compilations."""

import pytest

from lmjax import config
from lmjax.parallel.mesh import MORE_SHARDS
from lmjax.planning.report import alternatives
from lmjax.utils.errors import UserError

SHARDS = " ".join(f"--config.{key}={value}" for key, value in MORE_SHARDS.items())


@pytest.mark.parametrize("rows", [64, 8, 6, 1])
@pytest.mark.parametrize("needed", [1, 2, 3, 8, 16, 64, 100])
@pytest.mark.parametrize("most", [1, 2, 8, 64])
def test_the_fewest_microbatches_that_fit_are_named(rows, needed, most):
  """A step fits from `needed` microbatches on, or with remat; more than `most` are not possible."""
  settings, tried = config.load("configs/gpt2.py:debug") | {"batch": rows}, []

  def fits(changed):
    microbatches = changed["optim"].get("microbatches", 1)
    tried.append((microbatches, changed["model"].get("remat", "none")))
    if microbatches > most:
      raise UserError("fewer rows than devices")
    return microbatches >= needed or changed["model"].get("remat") == "full"

  named = alternatives(settings, fits)
  possible = [n for n in (2, 4, 8, 16, 32, 64) if rows % n == 0 and needed <= n <= most]
  assert [line for line in named if "microbatches" in line and "remat" not in line] == [
    f"--config.optim.microbatches={n}" for n in possible[:1]
  ]
  assert "--config.model.remat=full" in named and (SHARDS in named) == (needed == 1)
  assert len(tried) <= 6  # three of the six numbers of microbatches, and one of each other kind
