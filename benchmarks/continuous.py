"""Continuous batching beside batches that wait for their longest continuation: the same prompts, in turn.

    python benchmarks/continuous.py --workdir SMOLLM2 --prompts_file prompts.jsonl --batch 8 --max_new_tokens 128

Prompts as for `lmjax generate --parse_special`, continued greedily. Prints a JSON line a round, after one that is not
counted: seconds of both, how many tokens were written, and how many texts are the same.
"""

import argparse
import json
import time

from lmjax import storage
from lmjax.decode.logits import Sampling
from lmjax.inference.generate import Generator, in_order, read_prompts
from lmjax.parallel.sharding import use_layout


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--workdir", required=True)
  parser.add_argument("--prompts_file", required=True)
  parser.add_argument("--batch", type=int, default=8)
  parser.add_argument("--max_new_tokens", type=int, default=128)
  parser.add_argument("--rounds", type=int, default=2)
  options = parser.parse_args()
  loaded = storage.open(options.workdir).load()
  generator = Generator(loaded, Sampling(0.0), options.max_new_tokens, parse_special=True)
  rows = [(prompt, 0) for prompt in read_prompts(options.prompts_file)]

  def waiting() -> list[str]:
    groups = [rows[i : i + options.batch] for i in range(0, len(rows), options.batch)]
    return [text for group in groups for text in generator.texts(group)]

  ways = {"waiting": waiting, "continuous": lambda: [*in_order(generator.all_texts(rows, options.batch))]}
  with use_layout(loaded.layout):
    for round_number in range(options.rounds + 1):
      seconds, texts = {}, {}
      for name, way in ways.items():
        start = time.perf_counter()
        texts[name] = way()
        seconds[name] = round(time.perf_counter() - start, 2)
      same = sum(a == b for a, b in zip(*texts.values(), strict=True))
      tokens = sum(len(loaded.tokenizer.encode(text)) for text in texts["continuous"])
      if round_number:
        print(json.dumps(seconds | {"tokens": tokens, "texts": len(rows), "same": same}), flush=True)


if __name__ == "__main__":
  main()
