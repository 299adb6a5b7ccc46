"""A GPU: the same numbers as the CPU, then tokens a second and utilisation of training steps and generation.

    bash benchmarks/gpu.sh                             all cases
    bash benchmarks/gpu.sh --case gpt2 --case decode   some
    bash benchmarks/gpu.sh --peer                      each case in PyTorch too, in turn (benchmarks/gpu_peer.py)

Computation in bfloat16, parameters and AdamW in float32, no dropout. gpt2: 124M parameters, 32 x 1,024 tokens; packed:
the same with three documents in a row that do not see each other; bert: BERT-Base, 64 x 512 tokens, every place scored
and, as `bert80`, 80 places of a row; t5: T5-small, 64 x 512 source and 64 x 128 target tokens; decode: GPT-2 124M,
greedy, 32 tokens of prompt and 128 new ones, batch 1, 8 and 64. A time is the median of 3 rounds of --repeats steps,
waited for at the end of a round. Utilisation (MFU) = FLOPs of a step / seconds / peak bfloat16 FLOP/s of the device;
the FLOPs are counted in the step's own jaxpr, nothing recomputed (lmjax/planning/flops.py), and given for both
conventions of causal attention.
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from lmjax.compression.base import Identity
from lmjax.decode.logits import Sampling
from lmjax.decode.sample import Sampler
from lmjax.layers.kernels.dispatch import attend
from lmjax.layers.kernels.mask import Mask
from lmjax.models import decoder, encoder, encoder_decoder
from lmjax.optim import Optimizer
from lmjax.parallel.mesh import MeshShape
from lmjax.parallel.sharding import Layout, use_layout
from lmjax.planning.flops import FORMULA, train_step_flops
from lmjax.planning.hardware import chip_of
from lmjax.tasks.base import Task
from lmjax.tasks.causal_lm import CausalLM
from lmjax.tasks.masked_lm import MaskedLM
from lmjax.tasks.seq2seq import Seq2Seq
from lmjax.testing import fake_batch, init_params, init_state, tiny_decoder
from lmjax.train import make_step

TARGETS = 128  # tokens of a target of the case t5


def gpt2(scan: bool) -> decoder.Decoder:
  return decoder.Decoder(decoder.Config(**decoder.PRESETS["gpt2-124m"], scan=scan, dtype="bfloat16"))


def bert(scan: bool, predictions: int) -> Task:
  config = encoder.Config(**encoder.PRESETS["bert-base"], scan=scan, dtype="bfloat16")
  return MaskedLM(encoder.Encoder(config), max_predictions=predictions)


def t5(scan: bool) -> Task:
  config = encoder_decoder.Config(**encoder_decoder.PRESETS["t5-small"], scan=scan, dtype="bfloat16")
  return Seq2Seq(encoder_decoder.EncoderDecoder(config), target_length=TARGETS)


# Task by whether layers are scanned and how many positions are scored at a time, rows, length, tokens of a row.
STEPS: dict[str, tuple[Callable[[bool, int], Task], int, int, int]] = {
  "gpt2": (lambda scan, chunk: CausalLM(gpt2(scan), chunk=chunk, packed=False), 32, 1024, 1024),
  "packed": (lambda scan, chunk: CausalLM(gpt2(scan), chunk=chunk), 32, 1024, 1024),
  "bert": (lambda scan, chunk: bert(scan, 512), 64, 512, 512),
  "bert80": (lambda scan, chunk: bert(scan, 80), 64, 512, 512),
  "t5": (lambda scan, chunk: t5(scan), 64, 512, 512 + TARGETS),
  "tiny": (lambda scan, chunk: CausalLM(tiny_decoder(dtype="bfloat16", length=32)), 4, 32, 32),
}
PEERS = ("gpt2", "bert", "t5", "decode")


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


def time_step(case: str, layout: Layout, options: argparse.Namespace) -> dict:
  """Returns the seconds of a step, tokens a second and utilisation."""
  build, rows, length, tokens = STEPS[case]
  rows = options.rows or rows
  task, optimizer = build(options.scan, options.chunk), Optimizer(peak_lr=1e-4).build(1000)
  with use_layout(layout):
    state = init_state(task, optimizer, Identity(), layout, rows, length, 0)
    step = jax.jit(make_step(task, optimizer, Identity()), donate_argnums=0)
    batch, rng, rounds = jax.device_put(fake_batch(task, rows, length)), jax.random.key(0), []
    for count in (2, *[options.repeats] * 3):
      began = time.perf_counter()
      for _ in range(count):
        state, metrics = step(state, batch, rng)
      jax.block_until_ready((state, metrics))
      rounds.append((time.perf_counter() - began) / count)
    if options.trace:
      with jax.profiler.trace(f"{options.trace}/{case}"):
        for _ in range(2):
          state, metrics = step(state, batch, rng)
        jax.block_until_ready((state, metrics))
  seconds = statistics.median(rounds[1:])
  flops, chip = train_step_flops(task, rows, length), chip_of(layout.mesh.devices.flat[0])
  peak = chip.flops if chip else None
  memory = layout.mesh.devices.flat[0].memory_stats() or {}
  return {
    "case": case, "rows": rows, "length": length, "scan": options.scan, "chunk": options.chunk, "seconds": seconds,
    "first_steps": rounds[0] * 2, "tokens_per_second": rows * tokens / seconds,
    "mfu_causal": flops.causal / seconds / peak if peak else None,
    "mfu_full": flops.full / seconds / peak if peak else None,
    "gigabytes": memory.get("peak_bytes_in_use", 0) / 1e9,
    "formula": FORMULA,
  }  # fmt: skip


def time_generation(model: decoder.Decoder, layout: Layout, batch: int, new: int) -> dict:
  """Returns the tokens a second of greedy generation: the fastest of three runs after one."""
  with use_layout(layout):
    params = init_params(model, {"inputs": jnp.zeros((1, 8), jnp.int32)})["params"]
    sampler = Sampler(model, 32 + new, Sampling(temperature=0.0))
    ready, times = sampler.prepare(params), []
    for _ in range(4):
      began = time.perf_counter()
      list(sampler.tokens(ready, [[1] * 32] * batch, new, [0] * batch, every=new))
      times.append(time.perf_counter() - began)
  seconds = min(times[1:])
  return {"case": "decode", "batch": batch, "seconds": seconds, "tokens_per_second": batch * new / seconds}


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
  parser.add_argument("--case", action="append", choices=(*STEPS, "decode"))
  parser.add_argument("--repeats", type=int, default=10, help="steps of a round")
  parser.add_argument("--rows", type=int, help="of a batch, instead of the case's own")
  parser.add_argument("--chunk", type=int, default=0, help="gpt2: positions scored against the vocabulary at a time")
  parser.add_argument("--scan", action="store_true", help="scan over the layers instead of unrolling them")
  parser.add_argument("--trace", help="a folder for the profiles of two further steps of each case")
  parser.add_argument("--peer", action="store_true", help="run benchmarks/gpu_peer.py after each case")
  options = parser.parse_args()
  device = jax.devices()[0]
  print(json.dumps({"device": device.device_kind, "jax": jax.__version__}))
  check_correctness(device)
  layout = Layout.build(MeshShape().build([device]), "ddp")
  for case in options.case or ("gpt2", "packed", "bert", "bert80", "t5", "decode"):
    if case == "decode":
      for batch in (1, 8, 64):
        print(json.dumps(time_generation(gpt2(options.scan), layout, batch, 128)), flush=True)
    else:
      print(json.dumps(time_step(case, layout, options)), flush=True)
    if options.peer and case in PEERS:
      subprocess.run([sys.executable, "benchmarks/gpu_peer.py", case, "--repeats", str(options.repeats)], check=True)


if __name__ == "__main__":
  main()
