"""Run by test_rules.py with eight simulated devices: a 7B state is initialised in parts, no whole array anywhere."""

import math
import re

import jax

from lmjax import config, experiment
from lmjax.parallel.sharding import use_layout
from lmjax.state import make_init

WIDTHS = {"f32": 4, "u32": 4, "s32": 4, "u64": 8, "s64": 8, "bf16": 2, "pred": 1, "u8": 1}


def main():
  run = experiment.build(config.load("configs/llama.py:size=7b"), devices=jax.devices(), vocabulary=32_000)
  with use_layout(run.layout):
    tx = run.optimizer.build(10)
    init, abstract = make_init(run.task, tx, run.transform, run.layout, run.batch, run.data.length, 0)
    compiled = init.lower({}).compile()
  state = sum(math.prod(leaf.sharding.shard_shape(leaf.shape)) * 4 for leaf in jax.tree.leaves(abstract))
  assert 12 * run.parameters / 8 <= state < 1.001 * 12 * run.parameters / 8, "parameters and both moments are split"
  assert compiled.memory_analysis().output_size_in_bytes < 1.001 * state
  shapes = re.findall(r"\b([a-z]+\d+|pred)\[([\d,]+)\]", compiled.as_text())
  largest = max(math.prod(map(int, size.split(","))) * WIDTHS[kind] for kind, size in shapes)
  parts = max(math.prod(leaf.sharding.shard_shape(leaf.shape)) * 4 for leaf in jax.tree.leaves(abstract.params))
  assert largest == parts, (largest, parts)
  print("initialised in parts")


if __name__ == "__main__":
  main()
