"""Tokens a second of reading text, on one core, beside Hugging Face `datasets` + `tokenizers` doing the same work.

    taskset -c 0 python benchmarks/data.py --books 'lm_gutenberg_books/*.txt.gz' --tokenizer tok_gpt2 --work /tmp/data
    taskset -c 0 python benchmarks/data.py ... --peer          (needs: pip install datasets tokenizers)

The work, on the same JSONL file of parts of novels (16 kB each), with the same GPT-2 tokenizer:

prepare: tokenize the file into a form that is read at random later, on disk.
read: rows of 1,024 packed tokens, from what was prepared, in shuffled order: 1,000 rows.
tokenize: the same rows from the text, tokenized on the fly: 300 rows.

Prints one JSON line each; tokens are those in the output.
"""

import argparse
import gzip
import json
import os
import pathlib
import shutil
import time

LENGTH, ROWS = 1024, {"read": 1000, "tokenize": 300}


def make_file(books: str, file: pathlib.Path) -> None:
  """Writes parts of the books, without Gutenberg's own words, as JSON lines."""
  from lmjax.data.sources.text import gutenberg_body

  with file.open("w") as out:
    for path in sorted(pathlib.Path().glob(books) if not books.startswith("/") else pathlib.Path("/").glob(books[1:])):
      text = gutenberg_body(gzip.decompress(path.read_bytes())).decode("utf-8", "replace")
      for i in range(0, len(text), 16_384):
        out.write(json.dumps({"text": text[i : i + 16_384]}) + "\n")


def lmjax_cases(file: pathlib.Path, tokenizer_path: str, work: pathlib.Path):
  """Yields (case, tokens, seconds) of lmjax."""
  from absl import flags

  from lmjax.data.objectives.causal import Text
  from lmjax.data.sources.records import JsonLines
  from lmjax.data.sources.shards import Prepared
  from lmjax.data.sources.write_shards import Preparation
  from lmjax.data.tokenizers import registry

  flags.FLAGS.mark_as_parsed()
  tokenizer = registry.load(tokenizer_path)
  source = JsonLines(str(file))
  began = time.perf_counter()
  *_, (_, counts) = Preparation(source, tokenizer).run(work / "lmjax")
  yield "prepare", counts["tokens"], time.perf_counter() - began
  ready = Prepared(str(work / "lmjax"))
  for case, origin in (("read", ready), ("tokenize", source)):
    began = time.perf_counter()
    batches = Text(origin, origin, LENGTH).train(tokenizer, 8, 0)
    for _ in range(ROWS[case] // 8):
      next(batches)
    batches.close()
    yield case, ROWS[case] // 8 * 8 * LENGTH, time.perf_counter() - began


def peer_cases(file: pathlib.Path, tokenizer_path: str, work: pathlib.Path):
  """Yields (case, tokens, seconds) of datasets + tokenizers."""
  import datasets
  import numpy as np
  import tokenizers

  datasets.disable_progress_bars()
  folder = pathlib.Path(tokenizer_path)
  tokenizer = tokenizers.ByteLevelBPETokenizer(str(folder / "encoder.json"), str(folder / "vocab.bpe"))

  def encode(examples):
    return {"ids": [encoding.ids for encoding in tokenizer.encode_batch(examples["text"], add_special_tokens=False)]}

  def rows(dataset, count):
    """Packs shuffled documents into rows, with their segments and positions."""
    waiting, made, index = [], 0, 0
    order = np.random.default_rng(0).permutation(len(dataset))
    held = 0
    while made < count:
      ids = dataset[int(order[index % len(order)])]["ids"]
      index += 1
      waiting.append(np.asarray(ids, np.int32))
      held += len(ids)
      while held >= LENGTH and made < count:
        joined = np.concatenate(waiting)
        segments = np.repeat(np.arange(len(waiting)), [len(w) for w in waiting])[:LENGTH]
        positions = np.concatenate([np.arange(len(w)) for w in waiting])[:LENGTH]
        del segments, positions
        waiting, held, made = [joined[LENGTH:]], held - LENGTH, made + 1

  began = time.perf_counter()
  text = datasets.load_dataset("json", data_files=str(file), cache_dir=str(work / "cache"), split="train")
  made = text.map(encode, batched=True, remove_columns=["text"])
  made.save_to_disk(str(work / "peer"))
  seconds = time.perf_counter() - began
  yield "prepare", sum(len(ids) for ids in made["ids"]), seconds
  began = time.perf_counter()
  rows(datasets.load_from_disk(str(work / "peer")).with_format("numpy"), ROWS["read"])
  yield "read", ROWS["read"] * LENGTH, time.perf_counter() - began
  began = time.perf_counter()
  rows(text.with_transform(encode), ROWS["tokenize"])
  yield "tokenize", ROWS["tokenize"] * LENGTH, time.perf_counter() - began


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
  parser.add_argument("--books", required=True)
  parser.add_argument("--tokenizer", required=True)
  parser.add_argument("--work", required=True, type=pathlib.Path)
  parser.add_argument("--peer", action="store_true")
  options = parser.parse_args()
  os.environ["TOKENIZERS_PARALLELISM"] = "false"
  options.work.mkdir(parents=True, exist_ok=True)
  file = options.work / "books.jsonl"
  if not file.exists():
    make_file(options.books, file)
  for name in ("lmjax", "peer", "cache"):
    shutil.rmtree(options.work / name, ignore_errors=True)
  megabytes = file.stat().st_size / 1e6
  for case, tokens, seconds in (peer_cases if options.peer else lmjax_cases)(file, options.tokenizer, options.work):
    line = {"case": case, "tokens": tokens, "seconds": round(seconds, 3), "tokens_per_second": round(tokens / seconds)}
    print(json.dumps(line | ({"MB_per_second": round(megabytes / seconds, 2)} if case == "prepare" else {})))


if __name__ == "__main__":
  main()
