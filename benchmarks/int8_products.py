"""How XLA computes products of one vector with int8 kernels: time, and memory for copies of the kernels.

python benchmarks/int8_products.py
"""

import argparse
import time

import jax
import jax.numpy as jnp
import numpy as np


def product(x: jax.Array, kernel: jax.Array, result: jnp.dtype) -> jax.Array:
  """Returns the product of [1, I] and [I, O], of the types that they have."""
  return jax.lax.dot_general(x, kernel, (((1,), (0,)), ((), ())), preferred_element_type=result)


WAYS = {  # of x [1, I] and a kernel
  "float32": lambda x, kernel: product(x, kernel, jnp.float32),
  "int8, widened": lambda x, kernel: product(x, kernel.astype(jnp.float32), jnp.float32),
  "int8, mixed types": lambda x, kernel: product(x, kernel, jnp.float32),
  "int8 x int8 to int32": lambda x, kernel: product(x.astype(jnp.int8), kernel, jnp.int32),
  "int8, fused sum over rows": lambda x, kernel: jnp.sum(x[0][:, None] * kernel.astype(jnp.float32), axis=0),
  "int8, fused sum along rows": lambda x, kernel: jnp.sum(x * kernel.astype(jnp.float32), axis=1),  # kernel [O, I]
}


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
  parser.add_argument("--inputs", type=int, default=1536)
  parser.add_argument("--outputs", type=int, default=576)
  parser.add_argument("--kernels", type=int, default=40)
  options = parser.parse_args()
  rng = np.random.default_rng(0)
  size = (options.inputs, options.outputs)
  kernels = [jnp.asarray(rng.integers(-127, 128, size), jnp.int8) for _ in range(options.kernels)]
  x = jnp.asarray(rng.standard_normal((1, options.inputs)), jnp.float32)
  for name, way in WAYS.items():
    given = [kernel.astype(jnp.float32) if name == "float32" else kernel for kernel in kernels]
    given = [kernel.T for kernel in given] if name.endswith("along rows") else given
    run = jax.jit(lambda x, given, way=way: [way(x, kernel) for kernel in given]).lower(x, given).compile()
    jax.block_until_ready(run(x, given))
    seconds = []
    for _ in range(7):
      start = time.perf_counter()
      jax.block_until_ready(run(x, given))
      seconds.append(time.perf_counter() - start)
    copies = run.memory_analysis().temp_size_in_bytes / 1e6
    print(f"{name}: {1e3 * min(seconds):.1f} ms, temporaries {copies:.1f} MB", flush=True)


if __name__ == "__main__":
  main()
