"""Sentence vectors of compressed encoders: Spearman's correlation on STS-B, and sentences a second, in turn.

    python benchmarks/similarity.py --pairs stsb-en-dev.csv --workdir all-MiniLM-L6-v2 --workdir int8 --peer int8-onnx

--pairs: CSV of two sentences and a score (Cer et al., 2017); the prediction is the cosine of their vectors. --workdir:
what `lmjax embed` opens. --peer: a folder with an ONNX file, read by onnxruntime with two threads, the tokenizer.json
of the first --workdir and the same batches. Sentences are sorted by length, 32 in a batch. Prints a JSON line each: the
correlation, and the sentences a second of each of --repeats rounds after one that compiles.
"""

import argparse
import csv
import json
import pathlib
import time
from collections.abc import Callable

import numpy as np
import tokenizers
from scipy import stats

from lmjax import storage
from lmjax.inference.embed import make_embedder
from lmjax.utils.memory import keep_memory

BATCH = 32
Encode = Callable[[list[str]], np.ndarray]


def of_lmjax(path: str) -> Encode:
  """Returns what gives vectors of unit length [N, D]."""
  loaded = storage.open(path).load()
  embedder = make_embedder(loaded, path, "mean", 0, True, BATCH)
  return lambda texts: embedder.sequences(loaded.params, [embedder.encode_text(text) for text in texts])


def of_peer(path: str, folder: str) -> Encode:
  """Returns the same of an ONNX model with the tokenizer of another folder, pooled by the mean."""
  import onnxruntime

  options = onnxruntime.SessionOptions()
  options.intra_op_num_threads = 2
  (model,) = pathlib.Path(path).rglob("*.onnx")
  session = onnxruntime.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])
  tokenizer = tokenizers.Tokenizer.from_file(f"{folder}/tokenizer.json")
  tokenizer.enable_padding()
  tokenizer.enable_truncation(256)
  wanted = {given.name for given in session.get_inputs()}

  def encode(texts: list[str]) -> np.ndarray:
    vectors = []
    for first in range(0, len(texts), BATCH):
      rows = tokenizer.encode_batch(texts[first : first + BATCH])
      given = {
        "input_ids": np.array([row.ids for row in rows]),
        "attention_mask": np.array([row.attention_mask for row in rows]),
        "token_type_ids": np.array([row.type_ids for row in rows]),
      }
      hidden = session.run(None, {name: array for name, array in given.items() if name in wanted})[0]
      if hidden.ndim == 3:
        mask = given["attention_mask"][..., None]
        hidden = (hidden * mask).sum(1) / mask.sum(1)
      vectors.append(hidden / np.linalg.norm(hidden, axis=-1, keepdims=True))
    return np.concatenate(vectors)

  return encode


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--pairs", required=True)
  parser.add_argument("--workdir", action="append", required=True)
  parser.add_argument("--peer", action="append", default=[])
  parser.add_argument("--repeats", type=int, default=3)
  options = parser.parse_args()
  keep_memory()
  with open(options.pairs, newline="") as file:
    rows = [(first, second, float(score)) for first, second, score in csv.reader(file)]
  texts = sorted({text for row in rows for text in row[:2]}, key=len)
  place = {text: i for i, text in enumerate(texts)}
  cases = {path: of_lmjax(path) for path in options.workdir} | {
    path: of_peer(path, options.workdir[0]) for path in options.peer
  }
  speeds: dict[str, list[float]] = {path: [] for path in cases}
  correlations = {}
  for repeat in range(options.repeats + 1):
    for path, encode in cases.items():
      start = time.perf_counter()
      vectors = encode(texts)
      if repeat:
        speeds[path].append(round(len(texts) / (time.perf_counter() - start), 1))
      cosines = [float(vectors[place[first]] @ vectors[place[second]]) for first, second, _ in rows]
      correlations[path] = float(stats.spearmanr(cosines, [score for *_, score in rows]).statistic)
  for path, each in speeds.items():
    print(json.dumps(dict(model=path, spearman=round(correlations[path], 4), sentences_per_second=each)), flush=True)


if __name__ == "__main__":
  main()
