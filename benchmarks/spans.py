"""What a model trained on span corruption writes for hidden spans of held-out sentences, greedily.

    python benchmarks/spans.py --workdir runs/t5 --count 10

Sentences of the run's own validation text, of 12 to 24 words, one from each of so many documents. Prints a row of a
table for each: the sentence with its hidden spans in brackets, and what the model wrote for them.
"""

import argparse

import numpy as np

from lmjax import storage
from lmjax.data.objectives.denoising import SpanCorruption
from lmjax.data.objectives.masked_lm import sentences
from lmjax.evals.generation import generate
from lmjax.parallel.sharding import use_layout


def filled(source: list[int], target: list[int], tokenizer) -> str:
  """Returns a source with what is behind its sentinels in brackets."""
  spans, now = {}, []
  for i in target:
    if i >= tokenizer.inner.size:
      spans[i] = now = []
    elif i != tokenizer.end:
      now.append(i)
  words = {i: tokenizer.inner.decode(span) for i, span in spans.items()}
  text, waiting = "", []
  for i in [*source, tokenizer.size - 1]:
    if i >= tokenizer.inner.size:
      text += tokenizer.inner.decode(waiting) + f" [{words.get(i, '')}] "
      waiting = []
    else:
      waiting.append(i)
  text = text[: text.rindex(" [")]  # the sentinel that only ended the loop
  return " ".join(text.split())


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--workdir", required=True)
  parser.add_argument("--count", type=int, default=10)
  options = parser.parse_args()
  opened = storage.open(options.workdir).load()
  tokenizer, source = opened.tokenizer, opened.run.data.validation
  rng, found = np.random.default_rng(0), []
  for number in rng.permutation(len(source)):
    fitting = [s for s in sentences(source[int(number)]) if 12 <= len(s.split()) <= 24]
    if fitting and len(found) < options.count:
      ids = np.asarray(tokenizer.encode(" ".join(fitting[len(fitting) // 2].split())))
      found.append([part.tolist() for part in SpanCorruption()(ids, tokenizer, rng)])
  with use_layout(opened.layout):
    written = generate(opened.task, tokenizer, opened.params, [[*s, tokenizer.end] for s, _ in found], 24)
  for (hidden, truth), guess in zip(found, written, strict=True):
    print(f"| {filled(hidden, truth, tokenizer)} | `{guess}` |")


if __name__ == "__main__":
  main()
