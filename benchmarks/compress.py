"""Perplexity of compressed decoders on the start of a text, each next to the first, token by token.

    python benchmarks/compress.py --text wiki.valid.raw --model smollm2.gguf --model small

Windows do not overlap; each predicts the token after it, and the first token of the text is not predicted. Calibration
text must come after the characters.
"""

import argparse
import pathlib
import time

import jax
import jax.numpy as jnp
import numpy as np

from lmjax import storage
from lmjax.parallel.sharding import use_layout


def token_losses(path: str, text: str, length: int) -> np.ndarray:
  """Returns the negative log-likelihood of each predicted token, in nats."""
  loaded = storage.open(path).load()
  ids = np.asarray(loaded.tokenizer.encode(text), np.int32)
  score = jax.jit(lambda params, batch: -loaded.task.log_probs(params, batch))
  losses = []
  with use_layout(loaded.layout):
    for start in range(0, len(ids) - 1, length):
      part = ids[start : start + length + 1]
      window = np.zeros((1, length + 1), np.int32)
      window[0, : len(part)] = part
      segments = (np.arange(length) < len(part) - 1).astype(np.int32)[None]
      batch = {"inputs": window[:, :-1], "targets": window[:, 1:], "positions": np.arange(length)[None]}
      batch = {key: jnp.asarray(value) for key, value in (batch | {"segments": segments}).items()}
      losses.append(np.asarray(score(loaded.params, batch))[0, : len(part) - 1])
  return np.concatenate(losses)


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
  parser.add_argument("--text", required=True)
  parser.add_argument("--characters", type=int, default=12_000)
  parser.add_argument("--skip", type=int, default=0, help="characters before them")
  parser.add_argument("--length", type=int, default=1024)
  parser.add_argument("--model", action="append", required=True)
  options = parser.parse_args()
  text = pathlib.Path(options.text).read_text()[options.skip :][: options.characters]
  first = None
  for path in options.model:
    start = time.perf_counter()
    losses = token_losses(path, text, options.length)
    first = losses if first is None else first
    change = losses - first
    half = 1.96 * change.std(ddof=1) / len(change) ** 0.5
    print(
      f"{path}: perplexity {np.exp(losses.mean()):.4f} of {len(losses):,} tokens; nats a token above the first "
      f"{change.mean():+.5f} +- {half:.5f}; {time.perf_counter() - start:.0f} s",
      flush=True,
    )


if __name__ == "__main__":
  main()
