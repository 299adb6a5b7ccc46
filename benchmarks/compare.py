"""Two commits, the same numbers: losses of 20 debug steps, logits of a fixed batch, gradients, for every family.

    cd OLD && python NEW/benchmarks/compare.py record --output /tmp/old              (a checkout of the old commit)
    cd NEW && python benchmarks/compare.py record --output /tmp/new --start /tmp/old
    python benchmarks/compare.py check /tmp/old /tmp/new [--rtol 2e-6]

`record` imports the package of the folder it is run in. With `--start` it begins with the weights that the other commit
began with, under their new names. `--devices 8` computes on a simulated mesh (data 2, fsdp 2, model 2). Without
`--rtol` everything must be equal bit for bit: what a move of code must be. After renames and reordered sums it is equal
to the rounding of float32: the largest difference is printed for each case.
"""

import argparse
import os
import pathlib
import sys

# Written in the names of the older commit, which the newer one knows by its table of renames.
CASES = {
  "gpt": ("gpt", {}),
  "gpt2": ("gpt2", {}),
  "gpt2_unrolled": ("gpt2", {"model.scan": "false", "task.z_loss": "1e-3", "task.chunk": "16"}),
  "gpt3_remat": ("gpt3", {}),
  "gpt2_bfloat16": ("gpt2", {"model.dtype": "bfloat16"}),
  "llama": ("llama:size=8b", {}),
  "quickstart": ("quickstart", {}),
  "shakespeare": ("shakespeare_char", {}),
  "lstm": ("lstm", {}),
  "lstm_causal": ("lstm", {"task": "{'kind': 'lmjax.tasks.causal_lm:CausalLM'}"}),
  "bert": ("bert", {}),
  "bert_single": ("bert", {"data.next_sentence": "false"}),
  "elmo": ("elmo:size=small", {}),
  "elmo_sampled": ("elmo:size=small", {"task.negatives": "64"}),
  "t5": ("t5", {}),
  "t5_v1_1": ("t5:size=v1_1-small", {}),
  "t5_consecutive": ("t5:size=mini,consecutive", {}),
  "t5_prefix": ("t5", {"data.objective": "{'kind': 'lmjax.data.denoising:PrefixLM'}"}),
  "t5_mixture": ("t5", {"data.objective": "{'kind': 'lmjax.data.denoising:Denoisers'}"}),
  "transformer": ("transformer", {}),
  "scan": ("scan", {}),
}
STEPS = 20


def record(options: argparse.Namespace) -> None:
  if options.devices > 1:
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={options.devices}"
    os.environ.update(XLA_FLAGS=flags, NPROC=str(4 * options.devices))
  os.environ["JAX_PLATFORMS"] = "cpu"
  sys.path[0] = os.getcwd()
  output = pathlib.Path(options.output)
  output.mkdir(parents=True, exist_ok=True)
  for name in options.only or CASES:
    if (output / f"{name}.npz").exists():
      continue
    record_case(name, output, options.start and pathlib.Path(options.start), options.devices)


def record_case(name: str, output: pathlib.Path, start: pathlib.Path | None, devices: int) -> None:
  import jax
  import jax.numpy as jnp
  import numpy as np

  from lmjax import config, experiment
  from lmjax.parallel.sharding import use_layout
  from lmjax.train import make_step
  from lmjax.utils import pytree

  reference, overrides = CASES[name]
  overrides = {"model.dropout": "0.0", "model.dtype": "float32"} | overrides
  if reference.startswith("lstm"):
    overrides.setdefault("data.length", "16")
  file, _, choice = reference.partition(":")
  settings = config.load(f"configs/{file}.py:{','.join(filter(None, [choice, 'debug']))}", overrides)
  if devices > 1:
    settings |= {"rules": "fsdp_tp", "mesh": {"data": 2, "fsdp": 2, "model": devices // 4}}
  # Some trainers of tokenizers break ties differently in every process: the second run takes the first one's.
  run = experiment.build(settings, start and start / name)
  run.tokenizer.save(output / name / "tokenizer")
  with use_layout(run.layout):
    state = run.state()
    names = list(pytree.named_leaves(state.params))
    if start is not None:
      saved = np.load(start / f"{name}.npz")
      old = {renamed(key.removeprefix("start/")): saved[key] for key in saved if key.startswith("start/")}
      assert sorted(old) == sorted(names), sorted(set(old) ^ set(names))
      params = pytree.map_named(
        lambda key, leaf: jax.device_put(old[key].astype(leaf.dtype), leaf.sharding), state.params
      )
      tx = run.optimizer.build(run.steps)
      again = jax.jit(tx.init, out_shardings=jax.tree.map(lambda leaf: leaf.sharding, state.opt_state))(params)
      state = state.replace(params=params, opt_state=again)
    found = {f"start/{key}": np.asarray(leaf) for key, leaf in pytree.named_leaves(state.params).items()}
    batches = run.data.train(run.tokenizer, run.batch, run.seed)
    first = next(batches)
    spec = run.task.spec(run.batch, first["inputs"].shape[1] if "inputs" in first else run.data.length)
    rows = list(range(run.batch))
    # The older commit calls it `place`.
    place = getattr(run.layout, "shard_batch", None) or run.layout.place
    batch = place(spec, first, rows)
    rng = jax.random.key(1)

    def loss(params, batch):
      terms, _ = run.task.loss(params, {}, state.carry, batch, rng=rng)
      counts = run.task.counts(batch)
      return sum(terms[key].total / jnp.maximum(count, 1e-9) for key, count in counts.items())

    grads = jax.jit(jax.grad(loss))(state.params, batch)
    found |= {f"gradient/{key}": np.asarray(leaf, np.float32) for key, leaf in pytree.named_leaves(grads).items()}
    found["logits"] = np.asarray(jax.jit(lambda p, b: run.task.forward(p, b).logits)(state.params, batch), np.float32)
    step = jax.jit(make_step(run.task, run.optimizer.build(run.steps), run.transform, run.optimizer.microbatches))
    losses = []
    for _ in range(STEPS):
      state, metrics = step(state, batch, rng)
      losses.append(metrics["loss"].value())
      batch = place(spec, next(batches), rows)
    batches.close()
  found["losses"] = np.array(losses)
  np.savez(output / f"{name}.npz", **found)
  print(f"{name}: {losses[0]:.6f} to {losses[-1]:.6f}", flush=True)


def renamed(name: str) -> str:
  """Returns what the commit of this folder calls a parameter of the other."""
  try:
    from lmjax.utils.renames import parameter
  except ImportError:
    return name
  return parameter(name)


def check(options: argparse.Namespace) -> int:
  """Prints the largest difference of every case, relative to the largest value of its array; 1 if one is too large."""
  import numpy as np

  sys.path[0] = os.getcwd()
  failed = False
  for name in CASES:
    files = [pathlib.Path(folder) / f"{name}.npz" for folder in (options.old, options.new)]
    if not all(file.exists() for file in files):
      print(f"{name}: missing")
      failed = True
      continue
    old, new = map(np.load, files)
    worst = {"losses": 0.0, "logits": 0.0, "gradient": 0.0}
    equal = True
    for key in old:
      kind = key.split("/")[0]
      other = new[f"{kind}/{renamed(key.removeprefix(kind + '/'))}" if "/" in key else key]
      equal &= np.array_equal(old[key], other, equal_nan=True)
      if kind in worst:
        scale = max(float(np.abs(old[key]).max()), 1e-6)
        worst[kind] = max(worst[kind], float(np.abs(old[key].astype(np.float64) - other).max()) / scale)
    limit = options.rtol * (2e4 if "bfloat16" in name else 1)
    bad = not equal if not options.rtol else max(worst.values()) > limit
    failed |= bad
    told = ", ".join(f"{kind} {value:.1e}" for kind, value in worst.items())
    print(f"{name}: {'equal' if equal else told}{'  <-- differs' if bad else ''}")
  return int(failed)


def main() -> int:
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
  commands = parser.add_subparsers(dest="command", required=True)
  one = commands.add_parser("record")
  one.add_argument("--output", required=True)
  one.add_argument("--start", help="what another commit recorded: begin with its weights")
  one.add_argument("--devices", type=int, default=1)
  one.add_argument("--only", action="append", choices=tuple(CASES))
  two = commands.add_parser("check")
  two.add_argument("old")
  two.add_argument("new")
  two.add_argument("--rtol", type=float, default=0.0)
  options = parser.parse_args()
  if options.command == "check":
    return check(options)
  record(options)
  return 0


if __name__ == "__main__":
  sys.exit(main())
