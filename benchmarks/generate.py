"""Speed of greedy generation: the work, and the JSON keys, of a PyTorch peer run beside it.

    python benchmarks/generate.py

GPT-2 124M, a prompt of 32 tokens, 64 new ones, batch 1 and 8, float32, key/value cache. Prints a JSON line each: the
median of --repeats runs after one warm-up, and what bounds them: bytes of weights read a second (every weight once
for the prompt and once for each token but the last) against the bandwidth of a sum over as many bytes, measured in
the same process.
"""

import argparse
import json
import statistics
import time

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from lmjax.decode.logits import Sampling
from lmjax.decode.sample import Sampler
from lmjax.models.decoder import PRESETS, Config, Decoder
from lmjax.utils.memory import keep_memory


def median_seconds(fn, repeats: int) -> float:
  """Returns the median time of fn after one warm-up."""
  fn()
  times = []
  for _ in range(repeats):
    start = time.perf_counter()
    fn()
    times.append(time.perf_counter() - start)
  return statistics.median(times)


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--repeats", type=int, default=5)
  parser.add_argument("--prompt", type=int, default=32)
  parser.add_argument("--new", type=int, default=64)
  options = parser.parse_args()
  keep_memory()  # as `lmjax generate` does on a CPU
  model = Decoder(Config(**PRESETS["gpt2-124m"]))
  init = jax.jit(lambda rng: nn.unbox(model.init(rng, {"inputs": jnp.zeros((1, 8), jnp.int32)})["params"]))
  sampler = Sampler(model, 1024, Sampling(temperature=0.0))
  params = sampler.prepare(init(jax.random.key(0)))
  size = sum(leaf.nbytes for leaf in jax.tree.leaves(params) if leaf.shape[0] != 1024)  # positions are only looked up
  total = jax.jit(jnp.sum)
  ones = jnp.ones(size // 4)
  bandwidth = size / median_seconds(lambda: total(ones).block_until_ready(), 10)
  for batch in (1, 8):
    prompt = [np.random.default_rng(0).integers(0, 50257, options.prompt).tolist()] * batch

    def run(prompt=prompt, batch=batch):
      made = np.concatenate(list(sampler.tokens(params, prompt, options.new, [0] * batch, every=options.new)), axis=1)
      assert made.shape == (batch, options.new)

    seconds = median_seconds(run, options.repeats)
    read = size * options.new / seconds
    result = dict(
      case="generate",
      batch=batch,
      seconds=round(seconds, 4),
      new_tokens_per_second=round(batch * options.new / seconds, 1),
      gigabytes_per_second=round(read / 1e9, 1),
      bandwidth_gigabytes_per_second=round(bandwidth / 1e9, 1),
      share_of_bandwidth=round(read / bandwidth, 3),
    )
    print(json.dumps(result), flush=True)


if __name__ == "__main__":
  main()
