"""Seconds of a training step: the work, and the JSON keys, of a PyTorch peer run beside it.

    python benchmarks/train_step.py --case gpt2

All with AdamW, in float32 unless --dtype says otherwise. gpt2: 124M parameters, causal LM loss, 4 x 256 tokens. bert:
BERT-Base, masked LM and next sentence, 8 x 128 tokens, of which --predictions a row go through the vocabulary (20 in
BERT's own recipe, 128 in the peer). t5: T5-small, 8 x 128 source and 8 x 32 target tokens. Prints one JSON line: the
median of --repeats steps after one warm-up, and what bounds them: achieved FLOP/s (formula in lmjax/planning/flops.py)
against the best of several 1024 x 768 x 3072 matrix products in float32 measured in the same process.
"""

import argparse
import json
import statistics
import time

import jax
import jax.numpy as jnp

from lmjax.compression.base import Identity
from lmjax.layers.backend import compiler_options
from lmjax.models import decoder, encoder, encoder_decoder
from lmjax.models.decoder import Decoder
from lmjax.models.encoder import Encoder
from lmjax.models.encoder_decoder import EncoderDecoder
from lmjax.optim import Optimizer
from lmjax.parallel.mesh import MeshShape
from lmjax.parallel.sharding import Layout, count_parameters, use_layout
from lmjax.planning.flops import train_step_flops
from lmjax.state import named_parameters
from lmjax.tasks.base import Task
from lmjax.tasks.causal_lm import CausalLM
from lmjax.tasks.masked_lm import MaskedLM
from lmjax.tasks.seq2seq import Seq2Seq
from lmjax.testing import fake_batch, init_state
from lmjax.train import make_step
from lmjax.utils.memory import keep_memory

CASES = {"gpt2": (4, 256, 256), "bert": (8, 128, 128), "t5": (8, 128, 160)}  # rows, length, tokens a row that count


def task_of(case: str, scan: bool, predictions: int, dtype: str) -> Task:
  """Returns the work of a case."""
  same = dict(scan=scan, dtype=dtype)
  if case == "bert":
    return MaskedLM(Encoder(encoder.Config(**encoder.PRESETS["bert-base"] | same)), max_predictions=predictions)
  if case == "t5":
    return Seq2Seq(
      EncoderDecoder(encoder_decoder.Config(**encoder_decoder.PRESETS["t5-small"] | same)), target_length=32
    )
  return CausalLM(Decoder(decoder.Config(**decoder.PRESETS["gpt2-124m"] | same)), packed=False)


def median_seconds(fn, repeats: int) -> float:
  """Returns the median time of fn after one warm-up."""
  jax.block_until_ready(fn())
  times = []
  for _ in range(repeats):
    start = time.perf_counter()
    jax.block_until_ready(fn())
    times.append(time.perf_counter() - start)
  return statistics.median(times)


def product_flops() -> float:
  """Returns the FLOP/s of a 1024 x 768 x 3072 product in float32."""
  a, b = jnp.ones((1024, 768)), jnp.ones((768, 3072))
  product = jax.jit(lambda a, b: a @ b)
  return 2 * 1024 * 768 * 3072 / median_seconds(lambda: product(a, b), 20)


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--case", choices=CASES, default="gpt2")
  parser.add_argument("--repeats", type=int, default=5)
  parser.add_argument("--predictions", type=int, default=20, help="bert: places of a row to predict")
  parser.add_argument("--scan", action="store_true", help="scan over the layers instead of unrolling them")
  parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32", help="of the computation")
  options = parser.parse_args()
  keep_memory()  # as `lmjax train` does on a CPU
  batch, length, tokens = CASES[options.case]
  task = task_of(options.case, options.scan, options.predictions, options.dtype)
  tx = Optimizer(peak_lr=1e-4, schedule="constant", clip=0.0, weight_decay=0.01).build(1000)
  layout = Layout.build(MeshShape().build(jax.devices()[:1]), "ddp")
  with use_layout(layout):
    state = init_state(task, tx, Identity(), layout, batch, length, 0)
    step = jax.jit(make_step(task, tx, Identity()), donate_argnums=0, compiler_options=compiler_options())
    data, rng = fake_batch(task, batch, length), jax.random.key(1)

    def run():
      nonlocal state
      state, metrics = step(state, data, rng)
      return metrics

    seconds = median_seconds(run, options.repeats)
    parameters = count_parameters(named_parameters(task, batch, length))
  flops = train_step_flops(task, batch, length).executed(task.model.causal) / seconds
  peak = product_flops()
  result = dict(
    case=options.case,
    dtype=options.dtype,
    parameters=parameters,
    seconds=round(seconds, 4),
    tokens_per_second=round(batch * tokens / seconds, 1),
    gflops_per_second=round(flops / 1e9, 1),
    product_gflops_per_second=round(peak / 1e9, 1),
    share_of_product=round(flops / peak, 3),
  )
  print(json.dumps(result), flush=True)


if __name__ == "__main__":
  main()
