"""Speed of decoding with drafts, in turn with decoding without one.

    python benchmarks/speculative.py --workdir SmolLM2.gguf --draft int8 --draft fewer-layers --prompts_file prompts.txt

--workdir, --draft: what `lmjax generate` opens. --prompts_file: one prompt a line. For each prompt alone, --new tokens,
--tokens drafted at a time, at --temperature. Prints a JSON line each: the median tokens a second of --repeats rounds,
and of each round; which share of drafted tokens was accepted, and the tokens a step of the model; at temperature 0
also whether all tokens are those of the model alone.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from lmjax import storage
from lmjax.data.tokenizers.base import ends_of
from lmjax.decode.logits import Sampling
from lmjax.decode.sample import Sampler
from lmjax.decode.speculative import Counts, SpeculativeSampler
from lmjax.inference.generate import read_prompts
from lmjax.utils.memory import keep_memory


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--workdir", required=True)
  parser.add_argument("--draft", action="append", default=[])
  parser.add_argument("--prompts_file", required=True)
  parser.add_argument("--tokens", type=int, default=4)
  parser.add_argument("--new", type=int, default=64)
  parser.add_argument("--temperature", type=float, default=0.0)
  parser.add_argument("--repeats", type=int, default=3)
  options = parser.parse_args()
  keep_memory()
  loaded = storage.open(options.workdir).load()
  prompts = [loaded.tokenizer.encode(prompt) for prompt in read_prompts(options.prompts_file)]
  length = max(map(len, prompts)) + options.new
  model, sampling, end = loaded.task.model, Sampling(options.temperature), ends_of(loaded.tokenizer)
  plain = Sampler(model, length, sampling, end)
  runs: dict[str, tuple[Any, Any, Counts | None]] = {"": (plain, plain.prepare(loaded.params["model"]), None)}
  for path in options.draft:
    draft = storage.open(path).load()
    sampler = SpeculativeSampler(model, draft.task.model, length, sampling, end, options.tokens)
    runs[path] = sampler, sampler.prepare((loaded.params["model"], draft.params["model"])), sampler.counts

  def run(name: str, seed: int) -> tuple[float, list[list[int]]]:
    sampler, params, _ = runs[name]
    start, rows = time.perf_counter(), []
    for prompt in prompts:
      parts = list(sampler.tokens(params, [prompt], options.new, [seed], options.new))
      rows.append([int(token) for token in np.concatenate(parts, axis=1)[0] if token >= 0])
    return sum(map(len, rows)) / (time.perf_counter() - start), rows

  measure(runs, run, options)


def measure(runs: dict[str, Any], run: Callable[[str, int], Any], options: argparse.Namespace) -> None:
  """Prints the speeds of all runs, which take turns; the first round, which compiles, is not counted."""
  speeds: dict[str, list[float]] = {name: [] for name in runs}
  texts: dict[str, list[list[int]]] = {}
  for repeat in range(options.repeats + 1):
    for name in runs:
      speed, texts[name] = run(name, repeat)
      speeds[name] += [speed] * (repeat > 0)
  for name, (_, _, counts) in runs.items():
    line = {"draft": name or None, "tokens_per_second": round(statistics.median(speeds[name]), 2)}
    line |= {"rounds": [round(speed, 2) for speed in speeds[name]]}
    if counts is not None:
      line |= {"accepted": round(counts.accepted / counts.drafted, 4)}
      line |= {"tokens_per_step": round(counts.tokens / counts.steps, 3)}
      line |= {"same_tokens": texts[name] == texts[""]} if options.temperature == 0 else {}
    print(json.dumps(line), flush=True)


if __name__ == "__main__":
  main()
