"""Speed of greedy decoding of saved models, in turn, beside CTranslate2's.

    python benchmarks/decode.py --workdir SmolLM2.gguf --workdir int8 --peer ct2-float32 --peer ct2-int8

--workdir: what `lmjax generate` opens. --peer: a folder of `ct2-transformers-converter`, of a model with the same
vocabulary; needs `pip install ctranslate2`. Prompts of 32 random tokens, 64 new ones, batch 1 and 8, two threads.
Prints a JSON line each: the median tokens a second of --repeats rounds, and of each round.
"""

import argparse
import json
import pathlib
import statistics
import time
from collections.abc import Callable

import numpy as np

from lmjax import storage
from lmjax.decode.logits import Sampling
from lmjax.decode.sample import Sampler
from lmjax.utils.memory import keep_memory

PROMPT, NEW = 32, 64


def of_lmjax(path: str) -> tuple[int, Callable[[list[list[int]]], int]]:
  """Returns the size of the vocabulary, and what continues prompts and returns the number of new tokens."""
  loaded = storage.open(path).load()
  sampler = Sampler(loaded.task.model, PROMPT + NEW, Sampling(temperature=0.0))
  params = sampler.prepare(loaded.params["model"])

  def run(prompts: list[list[int]]) -> int:
    return np.concatenate(list(sampler.tokens(params, prompts, NEW, [0] * len(prompts), every=NEW)), axis=1).size

  return loaded.task.model.config.vocabulary, run


def of_peer(path: str) -> Callable[[list[list[int]]], int]:
  """Returns what continues prompts by CTranslate2."""
  import ctranslate2

  generator = ctranslate2.Generator(path, intra_threads=2, inter_threads=1)
  names = json.loads(pathlib.Path(path, "vocabulary.json").read_text())

  def run(prompts: list[list[int]]) -> int:
    results = generator.generate_batch(
      [[names[i] for i in prompt] for prompt in prompts], max_length=NEW, min_length=NEW, beam_size=1,
      include_prompt_in_result=False, end_token=[],
    )  # fmt: skip
    return sum(len(result.sequences_ids[0]) for result in results)

  return run


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--workdir", action="append", required=True)
  parser.add_argument("--peer", action="append", default=[])
  parser.add_argument("--repeats", type=int, default=5)
  options = parser.parse_args()
  keep_memory()  # as `lmjax generate` does on a CPU
  cases, size = {}, 0
  for path in options.workdir:
    size, cases[path] = of_lmjax(path)
  cases |= {path: of_peer(path) for path in options.peer}
  for batch in (1, 8):
    prompts = np.random.default_rng(0).integers(0, size, (batch, PROMPT)).tolist()
    speeds: dict[str, list[float]] = {path: [] for path in cases}
    for repeat in range(options.repeats + 1):  # the first one compiles
      for path, run in cases.items():
        start = time.perf_counter()
        made = run(prompts)
        assert made == batch * NEW, (path, made)
        if repeat:
          speeds[path].append(round(made / (time.perf_counter() - start), 1))
    for path, each in speeds.items():
      print(json.dumps(dict(model=path, batch=batch, tokens_per_second=statistics.median(each), each=each)), flush=True)


if __name__ == "__main__":
  main()
