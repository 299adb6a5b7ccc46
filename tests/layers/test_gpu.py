"""Models and their gradients, lowered for a GPU that is absent."""

import re

import jax
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
