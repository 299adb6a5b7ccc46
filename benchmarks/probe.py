"""What a tagger reads off ELMo's layers: a scalar mix of all beside the character CNN alone.

    python benchmarks/probe.py --workdir runs/elmo --train wnut17train.conll --test emerging.dev.conll

Prints a JSON line for each probe: F1 over single tokens that carry a tag, and the mix it learnt.
"""

import argparse
import json
import pathlib

import jax
import numpy as np

from lmjax import storage
from lmjax.inference.embed import Embedder
from lmjax.inference.probe import Probe, scores, token_f1


def read(path: str) -> list[list[tuple[str, str]]]:
  """Returns the sentences of a CoNLL file, each a list of (word, tag)."""
  sentences, now = [], []
  for line in pathlib.Path(path).read_text(encoding="utf-8").split("\n"):
    word, _, tag = line.partition("\t")
    if word.strip():
      now.append(("_".join(word.split()), tag.strip()))
    elif now:
      sentences.append(now)
      now = []
  return [*sentences, now] if now else sentences


def layers(opened, sentences: list[list[tuple[str, str]]]) -> np.ndarray:
  """Returns every layer's vectors of every word [N, T, D]."""
  found = []
  for layer in range(1, 2 + opened.task.model.config.depth):
    embedder = Embedder(opened.task, opened.tokenizer, 130, layer=layer, batch=64)
    texts = [embedder.encode_text(" ".join(word for word, _ in sentence), by_word=True) for sentence in sentences]
    found.append(np.concatenate(embedder.tokens(opened.params, texts)))
  return np.stack(found)


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument("--workdir", required=True)
  parser.add_argument("--train", required=True)
  parser.add_argument("--test", required=True)
  options = parser.parse_args()
  opened = storage.open(options.workdir).load()
  train, test = read(options.train), read(options.test)
  tags = ["O", *sorted({tag for sentence in train for _, tag in sentence} - {"O"})]
  number = {tag: i for i, tag in enumerate(tags)}
  labels = [np.array([number.get(tag, 0) for s in part for _, tag in s]) for part in (train, test)]
  x = [layers(opened, part) for part in (train, test)]
  for name, chosen in (("character CNN", slice(0, 1)), ("top layer", slice(-1, None)), ("scalar mix", slice(None))):
    probe = Probe(len(tags))
    params = probe.fit(x[0][chosen], labels[0])
    f1 = [token_f1(np.asarray(scores(params, a[chosen]).argmax(-1)), b) for a, b in zip(x, labels, strict=True)]
    mix = np.asarray(jax.nn.softmax(params["weights"])).round(3).tolist()
    print(json.dumps({"probe": name, "train_f1": round(f1[0], 4), "test_f1": round(f1[1], 4), "mix": mix}), flush=True)


if __name__ == "__main__":
  main()
