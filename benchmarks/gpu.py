"""A GPU: the same numbers as the CPU, then tokens a second and utilisation of training steps and generation.

    bash benchmarks/gpu.sh

Utilisation (MFU) = FLOPs of a step / seconds / peak bfloat16 FLOP/s of the device; the FLOPs are counted in the step's
own jaxpr, nothing recomputed (lmjax/planning/flops.py), and given for both conventions of causal attention.
"""

import argparse
import json
import statistics
import time

import jax
import jax.numpy as jnp
import numpy as np

from lmjax.compression.base import Identity
from lmjax.decode.logits import Sampling
from lmjax.decode.sample import Sampler
from lmjax.layers.kernels.dispatch import attend
from lmjax.layers.kernels.mask import Mask
from lmjax.models.decoder import PRESETS, Config, Decoder
from lmjax.optim import Optimizer
from lmjax.parallel.mesh import MeshShape
from lmjax.parallel.sharding import Layout, use_layout
from lmjax.planning.flops import FORMULA, train_step_flops
from lmjax.planning.hardware import chip_of
from lmjax.state import init_state
from lmjax.tasks.causal_lm import CausalLM
from lmjax.testing import fake_batch, init_params, tiny_decoder
from lmjax.train import make_step

STEPS = {"gpt2": ("gpt2-124m", 32, 1024), "tiny": (None, 4, 32)}  # preset, rows, length


def check_correctness(device: jax.Device) -> None:
  """A tiny float32 model's loss and gradients as on the CPU; packed bfloat16 attention as XLA's in float32."""
  task = CausalLM(tiny_decoder())
  batch = fake_batch(task)

  def loss(params):
    return task.loss(params, {}, {}, batch)[0]["loss"].total

  with jax.default_matmul_precision("highest"):
    results = []
    for where in (jax.devices("cpu")[0], device):
      with use_layout(Layout.build(MeshShape().build([where]), "ddp")) as layout:
        state = init_state(task, Optimizer().build(9), Identity(), layout, 4, 16, 0)
        results.append(jax.device_get(jax.jit(jax.value_and_grad(loss))(state.params)))
  worst = max(float(np.max(np.abs(a - b))) for a, b in zip(*map(jax.tree.leaves, results), strict=True))
  rng = np.random.default_rng(0)
  q, k, v = (jnp.asarray(rng.normal(size=(2, 256, 4, 64)), jnp.bfloat16) for _ in range(3))
  mask = Mask(jnp.asarray(np.repeat([[1, 2, 3, 3]] * 2, 64, axis=1)), causal=True)
  with use_layout(Layout.build(MeshShape().build([device]), "ddp")):
    half = attend(q, k, v, mask).astype(jnp.float32)
  with use_layout(Layout.build(MeshShape().build([jax.devices("cpu")[0]]), "ddp")):
    whole = attend(*(jax.device_put(np.asarray(x, np.float32), jax.devices("cpu")[0]) for x in (q, k, v)), mask)
  attention = float(np.max(np.abs(np.asarray(half) - np.asarray(whole))))
  print(json.dumps({"correctness": {"largest_gradient_difference": worst, "largest_attention_difference": attention}}))
  if worst > 1e-4 or attention > 5e-2:
    raise SystemExit("benchmarks/gpu.py: the device's numbers are not the CPU's")


def model(preset: str | None) -> Decoder:
  return (
    tiny_decoder(dtype="bfloat16", length=32)
    if preset is None
    else Decoder(Config(**PRESETS[preset], dtype="bfloat16"))
  )


def time_step(case: str, layout: Layout, repeats: int) -> dict:
  """Returns the median of repeated steps, each waited for."""
  preset, rows, length = STEPS[case]
  task, optimizer = CausalLM(model(preset), chunk=256), Optimizer(peak_lr=1e-4)
  with use_layout(layout):
    state = init_state(task, optimizer.build(100), Identity(), layout, rows, length, 0)
    step = jax.jit(make_step(task, optimizer.build(100), Identity()), donate_argnums=0)
    batch, rng, times = jax.device_put(fake_batch(task, rows, length)), jax.random.key(0), []
    for _ in range(repeats + 2):
      began = time.perf_counter()
      state, _ = jax.block_until_ready(step(state, batch, rng))
      times.append(time.perf_counter() - began)
  seconds = statistics.median(times[2:])
  flops, chip = train_step_flops(task, rows, length), chip_of(layout.mesh.devices.flat[0])
  peak = chip.flops if chip else None
  return {
    "case": f"{case} training step", "rows": rows, "length": length, "seconds": seconds,
    "tokens_per_second": rows * length / seconds,
    "mfu_causal": flops.causal / seconds / peak if peak else None,
    "mfu_full": flops.full / seconds / peak if peak else None,
    "formula": FORMULA,
  }  # fmt: skip


def time_generation(case: str, layout: Layout, batch: int) -> dict:
  decoder = model(STEPS[case][0])
  new = 8 if case == "tiny" else 128
  with use_layout(layout):
    params = init_params(decoder, {"inputs": jnp.zeros((1, 8), jnp.int32)})["params"]
    sampler = Sampler(decoder, 16 + new, Sampling(temperature=0.0))
    ready, times = sampler.prepare(params), []
    for _ in range(3):
      began = time.perf_counter()
      list(sampler.tokens(ready, [[1] * 16] * batch, new, [0] * batch, every=new))
      times.append(time.perf_counter() - began)
  return {"case": f"{case} generation", "batch": batch, "tokens_per_second": batch * new / min(times)}


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
  parser.add_argument("--case", action="append", choices=tuple(STEPS))
  parser.add_argument("--repeats", type=int, default=20)
  options = parser.parse_args()
  device = jax.devices()[0]
  print(json.dumps({"device": device.device_kind, "jax": jax.__version__}))
  check_correctness(device)
  layout = Layout.build(MeshShape().build([device]), "ddp")
  for case in options.case or ("gpt2",):
    print(json.dumps(time_step(case, layout, options.repeats)), flush=True)
    for batch in (1, 8):
      print(json.dumps(time_generation(case, layout, batch)), flush=True)


if __name__ == "__main__":
  main()
