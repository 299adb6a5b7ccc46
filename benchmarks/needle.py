"""A needle in a haystack: does a decoder find one sentence in a long text, and where does it not?

    python benchmarks/needle.py --workdir SmolLM2.gguf --text book.txt --length 2048 --length 4096 --output runs/needle
    python benchmarks/needle.py ... --length 16384 --needles 4 --yarn 2 --output runs/needle-yarn

A sentence with a number of seven digits is put into a text at five depths; the question follows at the end, and the
answer is right if greedy decoding gives all of its digits. The text before a depth is read once for all needles: its
cache is used again. Finished needles are not repeated. Writes OUTPUT/needles.jsonl and OUTPUT/needles.png, and prints
the share found with Wilson's 95 % interval for each length. --yarn F: rotary positions stretched by YaRN (Peng et al.,
2023, arXiv:2309.00071) from --original tokens.
"""

import argparse
import dataclasses
import functools
import json

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
from etils import epath
from flax import linen as nn
from scipy import stats

from lmjax import storage
from lmjax.decode.sample import prepare
from lmjax.layers.cache import Cache
from lmjax.storage.base import LoadedModel
from lmjax.utils.memory import keep_memory
from lmjax.utils.pytree import Tree

PART = 512  # tokens that are read together
PLACES = ("Paris", "Lagos", "Lima", "Oslo", "Cairo", "Quito", "Delhi", "Hanoi", "Perth", "Rome")
NEEDLE = " The secret number of {place} is {number}."
QUESTION = "\n\nWhat is the secret number of {place}? The secret number of {place} is"


@functools.partial(jax.jit, static_argnums=0)
def extend(model: nn.Module, params: Tree, cache: Cache, tokens: jax.Array, valid: jax.Array) -> tuple:
  """Returns the most probable token after each of [1, PART], and the longer cache."""
  hidden, cache = model.apply({"params": params}, cache, tokens, valid, method="extend")
  return jnp.argmax(model.apply({"params": params}, hidden, method="logits"), axis=-1), cache


def read(model: nn.Module, params: Tree, cache: Cache, ids: list[int]) -> tuple[np.ndarray, Cache]:
  """Reads tokens in parts; returns the most probable token after each of the last part, and the longer cache."""
  best = np.zeros((1, 0), np.int32)
  for end in range((len(ids) - 1) % PART + 1, len(ids) + 1, PART):  # the first part is the short one
    part = ids[max(end - PART, 0) : end]
    tokens, valid = np.zeros((1, PART), np.int32), np.zeros((1, PART), bool)
    tokens[0, -len(part) :], valid[0, -len(part) :] = part, True
    best, cache = extend(model, params, cache, tokens, valid)
  return np.asarray(best)[0], cache


def found(loaded: LoadedModel, params: Tree, text: list[int], length: int, depth: float, needles: range) -> list[bool]:
  """Returns which needles are found in a text of `length` tokens, needle and question included."""
  model, encode = loaded.task.model, loaded.tokenizer.encode
  written = [(PLACES[i % len(PLACES)], str(np.random.default_rng(i).integers(10**6, 10**7))) for i in needles]
  texts = [(NEEDLE.format(place=p, number=n), QUESTION.format(place=p), f" {n}") for p, n in written]
  ids = [tuple(map(encode, each)) for each in texts]
  kept = length - max(sum(map(len, each)) for each in ids)
  cut = int(depth * kept)
  while 0 < cut < kept and not loaded.tokenizer.decode([text[cut - 1]]).endswith("."):
    cut += 1  # after a sentence
  c, slots = model.config, -(-length // PART) * PART + 4 * PART  # each piece is padded to whole parts
  empty = Cache.empty(c.depth, 1, slots, c.kv_heads, c.head_size, jnp.dtype(c.dtype))
  _, before = read(model, params, empty, text[:cut])
  results = []
  for needle, question, answer in ids:
    best, _ = read(model, params, before, [*needle, *text[cut:kept], *question, *answer])
    results.append(best[-len(answer) - 1 : -1].tolist() == list(answer))
  return results


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--workdir", required=True)
  parser.add_argument("--text", required=True)
  parser.add_argument("--length", type=int, action="append", required=True)
  parser.add_argument("--needles", type=int, default=10, help="at each depth")
  parser.add_argument("--yarn", type=float, default=0)
  parser.add_argument("--original", type=int, default=8192)
  parser.add_argument("--output", required=True)
  options = parser.parse_args()
  keep_memory()
  loaded = storage.open(options.workdir).load()
  if options.yarn:
    config = loaded.task.model.config
    rotary = dataclasses.replace(config.rotary, scaling="yarn", factor=options.yarn, original=options.original,
                                 high=32.0, amplitude=0.1 * np.log(options.yarn) + 1.0)  # fmt: skip
    model = loaded.task.model.clone(config=dataclasses.replace(config, rotary=rotary))
    loaded = dataclasses.replace(loaded, task=dataclasses.replace(loaded.task, model=model))
  params = prepare(loaded.task.model, loaded.params["model"])
  text = loaded.tokenizer.encode(epath.Path(options.text).read_text())
  if len(text) < max(options.length):
    parser.error(f"--text has {len(text)} tokens, fewer than {max(options.length)}")
  folder, depths = epath.Path(options.output), (0.0, 0.25, 0.5, 0.75, 1.0)
  folder.mkdir(parents=True, exist_ok=True)
  kept = folder / "needles.jsonl"
  done = [json.loads(line) for line in kept.read_text().splitlines()] if kept.exists() else []
  for length in options.length:
    for depth in depths:
      had = sum(row["length"] == length and row["depth"] == depth for row in done)
      new = found(loaded, params, text, length, depth, range(had, options.needles)) if had < options.needles else []
      done += [dict(length=length, depth=depth, needle=had + i, found=right) for i, right in enumerate(new)]
      kept.write_text("".join(json.dumps(row) + "\n" for row in done))
      print(f"{length} tokens, depth {depth:.0%}: {sum(new)} of {len(new)} new needles", flush=True)
  report(done, sorted({row["length"] for row in done}), depths, folder / "needles.png")


def report(done: list[dict], lengths: list[int], depths: tuple[float, ...], picture: epath.Path) -> None:
  """Prints the share found for each length, and draws it for each length and depth."""
  shares = np.zeros((len(depths), len(lengths)))
  for x, length in enumerate(lengths):
    for y, depth in enumerate(depths):
      shares[y, x] = np.mean([row["found"] for row in done if (row["length"], row["depth"]) == (length, depth)])
    own = [row["found"] for row in done if row["length"] == length]
    low, high = stats.binomtest(sum(own), len(own)).proportion_ci(method="wilson")
    print(f"{length} tokens: {np.mean(own):.3f} ({low:.3f} to {high:.3f}) of {len(own)}")
  figure, axes = plt.subplots(figsize=(1.5 + 1.2 * len(lengths), 3.6), layout="constrained")
  axes.imshow(shares, vmin=0, vmax=1, cmap="cividis", aspect="auto")
  axes.set_xticks(range(len(lengths)), [f"{length:,}" for length in lengths])
  axes.set_yticks(range(len(depths)), [f"{depth:.0%}" for depth in depths])
  axes.set(xlabel="tokens", ylabel="depth of the needle", title="needles found")
  for (y, x), share in np.ndenumerate(shares):
    axes.text(x, y, f"{share:.2f}", ha="center", va="center", color="black" if share > 0.5 else "white")
  figure.savefig(picture, dpi=120)


if __name__ == "__main__":
  main()
