"""LoRA beside full fine-tuning of a trained decoder: share of trained parameters, memory of the compiled step, losses.

python benchmarks/lora.py --model smollm2.gguf --text book.txt --rank 8 --steps 5
"""

import argparse
import itertools
import pathlib
import time

import jax
import jax.numpy as jnp
import numpy as np

from lmjax import storage
from lmjax.compression.base import Identity
from lmjax.compression.lora import LoRA
from lmjax.experiment import Start
from lmjax.layers.backend import compiler_options
from lmjax.optim import Optimizer
from lmjax.parallel.mesh import MeshShape
from lmjax.parallel.sharding import Layout, count_parameters, use_layout
from lmjax.state import make_init
from lmjax.storage.base import replace_dtype
from lmjax.storage.start import load
from lmjax.train import make_step


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
  parser.add_argument("--model", required=True)
  parser.add_argument("--text", required=True)
  parser.add_argument("--rank", type=int, default=8)
  parser.add_argument("--rows", type=int, default=2)
  parser.add_argument("--length", type=int, default=128)
  parser.add_argument("--steps", type=int, default=5)
  options = parser.parse_args()
  saved = storage.open(options.model)
  task = replace_dtype(saved.task, "bfloat16")
  layout = Layout.build(MeshShape().build(jax.devices()[:1]), "ddp")
  ids = saved.tokenizer.encode(pathlib.Path(options.text).read_text()[:200_000])
  size = options.rows * (options.length + 1)
  rows = np.asarray(ids[: len(ids) // size * size]).reshape(-1, options.rows, options.length + 1)
  optimizer = Optimizer(peak_lr=2e-4, schedule="constant", warmup=0, weight_decay=0.0).build(options.steps)
  for name, transform in (
    ("full fine-tuning", Identity()),
    ("LoRA", LoRA(rank=options.rank, alpha=2 * options.rank, dtype="bfloat16")),
  ):
    with use_layout(layout):
      init, abstract = make_init(task, optimizer, transform, layout, options.rows, options.length, 0)
      spec = task.spec(options.rows, options.length)
      jitted = jax.jit(make_step(task, optimizer, transform), donate_argnums=0, compiler_options=compiler_options())
      compiled = jitted.lower(abstract, spec, jax.random.key(0)).compile()
      memory = compiled.memory_analysis()
      trained = sum(leaf.size for leaf in jax.tree.leaves(abstract.params))
      whole = count_parameters(saved.named)
      print(
        f"{name}: {trained:,} of {whole:,} parameters trained ({trained / whole:.3%}); state and batch "
        f"{memory.argument_size_in_bytes / 1e6:,.0f} MB, temporaries {memory.temp_size_in_bytes / 1e6:,.0f} MB",
        flush=True,
      )
      if isinstance(transform, Identity):
        continue
      state = init(load(Start(options.model), saved.named, layout)[0])
      for step, part in enumerate(itertools.islice(rows, options.steps)):
        batch = {key: jnp.ones(leaf.shape, leaf.dtype) for key, leaf in spec.items()}
        batch |= {"inputs": jnp.asarray(part[:, :-1], jnp.int32), "targets": jnp.asarray(part[:, 1:], jnp.int32)}
        batch["positions"] = jnp.broadcast_to(jnp.arange(options.length, dtype=jnp.int32), part[:, 1:].shape)
        batch = {key: value.astype(spec[key].dtype) for key, value in batch.items()}
        start = time.perf_counter()
        state, metrics = compiled(state, batch, jax.random.key(0))
        print(f"step {step + 1}: loss {metrics['loss'].value():.4f}, {time.perf_counter() - start:.1f} s", flush=True)


if __name__ == "__main__":
  main()
