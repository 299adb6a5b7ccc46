"""Tokenize a corpus once into shards for training; show data as a model sees it.

lmjax prepare --files 'books/*.txt.gz' --tokenizer my_tokenizer --output data/books --validation 0.01 --deduplicate
lmjax prepare --config configs/text.py:files='my/*.txt' --output data/mine     (its source and its tokenizer)
lmjax train --config configs/text.py:prepared=data/books --workdir runs/books
lmjax prepare --inspect data/books                 (or a run folder, or configs/text.py:files='my/*.txt')
lmjax prepare tfds lm1b                            (download a TFDS dataset as array_record)
"""

import argparse
import os
import time

from etils import epath
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from lmjax import config as configs
from lmjax.commands.options import new_parser, parse_overrides
from lmjax.data import preview
from lmjax.data.objectives.causal import Text
from lmjax.data.pipeline import Reader
from lmjax.data.sources import files, records
from lmjax.data.sources.write_shards import Preparation
from lmjax.data.tokenizers import registry
from lmjax.experiment import load_config
from lmjax.inference.output import show
from lmjax.logs import console
from lmjax.utils.errors import UserError


def main(arguments: list[str]) -> int:
  """Runs `lmjax prepare`."""
  parser = new_parser("prepare", __doc__)
  add = parser.add_argument
  add("tfds", nargs="*", help="tfds NAME: prepare a dataset of TensorFlow Datasets")
  add("--output", help="folder to write")
  add("--files", action="append", help="text, .jsonl or .parquet files, by path or glob, plain or .gz")
  add("--config", help="use the source and the tokenizer of this config instead")
  add("--tokenizer", help="tokenizer to use: a folder, a file or a run")
  add("--algorithm", choices=tuple(registry.ALGORITHMS), default="bpe", help="of a tokenizer to train otherwise")
  add("--size", type=int, default=8000, help="number of ids of that tokenizer")
  add("--document", default="chunk", help="split text files by: chunk, paragraph, chapter, line, file")
  add("--key", default="text", help="key or column of the text in .jsonl and .parquet")
  add("--clean", help="function of a text file's bytes: lmjax.data.sources.text:gutenberg_body")
  add("--keep", help="keep only documents for which this function is true: package.module:name")
  add("--validation", type=float, default=0.0, help="fraction of documents, by their hash, in the validation split")
  add("--deduplicate", action="store_true", help="keep only the first of equal documents")
  add("--workers", type=int, default=os.cpu_count(), help="processes; the output does not depend on them")
  add("--shard_megabytes", type=int, default=64, help="size after which a shard ends")
  add("--folder", default="", help="tfds: data directory, by default ~/tensorflow_datasets")
  add("--inspect", metavar="PATH", help="show prepared data, or the batches of a run or a config")
  add("--rows", type=int, default=2, help="inspect: rows to show")
  add("--tokens", type=int, default=12, help="inspect: tokens of each row to list")
  options, overrides = parse_overrides(parser, arguments)
  run = _inspect if options.inspect else _prepare_tfds if options.tfds else _prepare
  run(options, overrides)
  return 0


def _prepare(options: argparse.Namespace, overrides: dict[str, str]) -> None:
  if not options.output or "://" in options.output:
    raise UserError("prepare: --output must be a local folder (copy it to a bucket afterwards)")
  if bool(options.files) == bool(options.config):
    raise UserError("prepare: either --files or --config is required")
  clean, keep = (configs.resolve(n, k) if n else None for n, k in ((options.clean, "clean"), (options.keep, "keep")))
  if options.config:
    data = configs.build(configs.load(options.config, overrides)["data"], "data", None, Reader)
  else:
    source = files.open_files(options.files, options.key, options.document, clean)
    settings = registry.TokenizerConfig(options.algorithm, options.size, options.tokenizer or "")
    data = Text(source, source, 1, settings)
  saved = epath.Path(options.output) / "tokenizer"
  with console.status("tokenizer"):
    tokenizer = registry.load(saved) if saved.exists() and not options.tokenizer else data.make_tokenizer()
  rest = options.validation, options.deduplicate, keep, options.shard_megabytes * 2**20
  preparation, began = Preparation(data.source, tokenizer, *rest), time.perf_counter()
  counts = first = None
  columns = (TextColumn("{task.completed:,.0f} of {task.total:,.0f} documents"), BarColumn())
  with Progress(*columns, TextColumn("{task.fields[speed]}"), TimeRemainingColumn(), console=console) as progress:
    bar = progress.add_task("prepare", total=len(data.source), speed="")
    for read, counts in preparation.run(options.output, options.workers):
      first = first or counts["bytes"]
      speed = (counts["bytes"] - first) / 1e6 / (time.perf_counter() - began)
      progress.update(bar, completed=read, speed=f"{speed:.1f} MB/s")
  if counts is None:
    console.print(f"{options.output} is prepared already")
    return
  seconds = time.perf_counter() - began
  speed = counts["bytes"] / 1e6 / seconds / max(options.workers, 1)
  keys = ("documents", "tokens", "duplicates", "filtered", "skipped")
  summary = ", ".join(f"{counts[key]:,} {key}" for key in keys)
  console.print(f"{options.output}: {summary}; {seconds:.1f} s, {speed:.2f} MB/s of text per process")
  console.print(f"lmjax train --config configs/text.py:prepared={options.output} --workdir runs/NAME")


def _prepare_tfds(options: argparse.Namespace, overrides: dict[str, str]) -> None:
  if len(options.tfds) != 2 or options.tfds[0] != "tfds":
    raise UserError(f"prepare: unexpected arguments {' '.join(options.tfds)!r}; did you mean lmjax prepare tfds NAME?")
  with console.status(f"{options.tfds[1]}: downloading and preparing"):
    folder, examples = records.prepare_tfds(options.tfds[1], options.folder)
  console.print(f"{folder}: {', '.join(f'{name} {count:,}' for name, count in examples.items())}")


def _inspect(options: argparse.Namespace, overrides: dict[str, str]) -> None:
  """Prints rows, counts and lengths of prepared data, of a run, or of a config."""
  path, seed, batch = epath.Path(options.inspect), 0, options.rows
  if path.is_dir() and not (path / "config.json").exists():
    data, tokenizer, counts = preview.open_prepared(path)
    console.print(f"{path}: {counts}; all checksums match")
  else:
    settings = load_config(path) if path.is_dir() else configs.load(options.inspect, overrides)
    data, seed, batch = configs.build(settings["data"], "data", None, Reader), settings["seed"], settings["batch"]
    saved = path / "tokenizer"
    tokenizer = registry.load(saved) if path.is_dir() and saved.exists() else data.make_tokenizer()
  plot = path / "lengths.png" if path.is_dir() and os.access(path, os.W_OK) else None
  plot = None if plot and os.path.islink(plot) else plot  # which would be written wherever it points
  for part in preview.preview(data, tokenizer, batch, seed, options.rows, options.tokens, plot):
    show(part) if isinstance(part, Table) else console.print(part)
