"""Models and their gradients, lowered for a GPU that is absent."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from jax import export

from lmjax.layers import backend
from lmjax.testing import fake_batch
from tests.families import FAMILIES, tiny_task

UNUSED = {"LSTM", "ELMo"}  # without attention


@pytest.fixture(autouse=True)
def _gpu(monkeypatch):
  from jax._src.cudnn import fused_attention_stablehlo as cudnn

  monkeypatch.setattr(cudnn, "check_cudnn_version", lambda *_: 91000)
  monkeypatch.setattr(cudnn, "check_compute_capability", lambda *_: True)
  monkeypatch.setattr(cudnn, "is_cuda_compute_capability_equal", lambda *_: False)
  monkeypatch.setattr(backend, "platform", lambda: "gpu")


def kernels(family: str, length: int, **changes) -> set[str]:
  """Returns the attention kernels in the initialisation of a tiny model and the gradient of its loss."""
  task = tiny_task(family, dtype="bfloat16", **changes)
  batch = fake_batch(task, 2, length)

  def gradient(rng, batch):
    params = nn.unbox(task.init(rng, batch))
    return jax.grad(
      lambda params: sum(m.total for m in task.loss(params, {}, task.initial_carry(2), batch)[0].values())
    )(params)

  names = [f"__cudnn$fmha{kind}Softmax{way}" for kind in ("", "ScaleBias") for way in ("", "Backward")]
  checks = [export.DisabledSafetyCheck.custom_call(name) for name in names]
  given = jax.random.key(0), batch
  module = export.export(jax.jit(gradient), platforms=["cuda"], disabled_checks=checks)(*given).mlir_module()
  return set(re.findall(r"__cudnn\$fmha\w+", module))


@pytest.mark.parametrize("scan", [False, True])
@pytest.mark.parametrize("family", sorted(set(FAMILIES) - UNUSED))
def test_a_family_trains_with_the_kernels_of_cudnn(family, scan):
  assert {name.endswith("Backward") for name in kernels(family, 16, scan=scan)} == {False, True}


@pytest.mark.parametrize("family", ["GPT", "BERT"])
@pytest.mark.parametrize("changes", [dict(length=15), dict(head_size=6), dict(head_size=136)])
def test_shapes_that_cudnn_cannot_compute_are_computed_without_it(family, changes):
  length = changes.get("length", 16)
  assert not kernels(family, **({"length": length} | changes))


@pytest.mark.parametrize("rows", [2, 64, 65])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_rows_of_a_small_table_are_the_same_and_no_scatter_sums_their_gradients(rows, dtype):
  rng = np.random.default_rng(0)
  table, ids = jnp.asarray(rng.normal(size=(rows, 5)), dtype), jnp.asarray(rng.integers(-2, rows + 3, (3, 40)))
  wanted = table[jnp.clip(ids, 0, rows - 1)]
  assert (backend.take_rows(table, ids) == wanted).all()
  weights = jnp.asarray(rng.normal(size=(3, 40, 5)), dtype)
  gradient = jax.grad(lambda table: jnp.sum(backend.take_rows(table, ids).astype(jnp.float32) * weights))
  exact = np.zeros((rows, 5))
  np.add.at(exact, np.clip(ids, 0, rows - 1), np.asarray(weights, np.float64))
  tolerance = 120 * float(jnp.finfo(dtype).eps) * np.abs(np.asarray(weights, np.float64)).max()  # of 120 sums
  np.testing.assert_allclose(np.asarray(gradient(table), np.float64), exact, atol=tolerance)
  assert ("scatter" in jax.jit(gradient).lower(table).as_text()) == (rows > 64)
