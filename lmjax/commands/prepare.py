"""Tokenize a corpus once into shards for training; show data as a model sees it.

lmjax prepare --files 'books/*.txt.gz' --tokenizer my_tokenizer --output data/books --validation 0.01 --deduplicate
lmjax prepare --config configs/text.py:files='my/*.txt' --output data/mine     (its source and its tokenizer)
lmjax train --config configs/text.py:prepared=data/books --workdir runs/books
lmjax prepare --inspect data/books                 (or a run folder, or configs/text.py:files='my/*.txt')
lmjax prepare tfds lm1b                            (download a TFDS dataset as array_record)
"""

import argparse
import os
import shlex

from rich.table import Table

from lmjax import config as configs
from lmjax.commands.options import new_parser, parse_overrides, refuse
from lmjax.data import preview
from lmjax.data.objectives.causal import Text
from lmjax.data.pipeline import Reader
from lmjax.data.sources import files, records
from lmjax.data.sources.write_shards import Preparation
from lmjax.data.tokenizers import registry
from lmjax.experiment import load_config
from lmjax.inference.output import show
from lmjax.inference.prepare import open_data, prepared
from lmjax.logs import console
from lmjax.utils.errors import UserError
from lmjax.utils.files import expand

# Options that have no effect beside another one, or without it.
BESIDE = {
  "inspect": "output files tokenizer algorithm size document key clean keep validation",
  "config": "tokenizer algorithm size document key clean",
  "tokenizer": "algorithm size",
}
NEEDS = {"inspect": "rows tokens", "tfds": "folder"}


def main(arguments: list[str]) -> int:
  """Runs `lmjax prepare`."""
  parser = new_parser("prepare", __doc__)
  add = parser.add_argument
  add("tfds", nargs="*", help="tfds NAME: prepare a dataset of TensorFlow Datasets")
  add("--output", help="folder to write")
  add("--files", action="append", help="text, JSON lines or parquet files, by path, glob or folder, plain or .gz")
  add("--config", help="use the source and the tokenizer of this config instead")
  add("--tokenizer", help="tokenizer to use: a folder, a file or a run")
  add("--algorithm", choices=tuple(registry.ALGORITHMS), default="bpe", help="of a tokenizer to train otherwise")
  add("--size", type=int, least=1, default=8000, help="number of ids of that tokenizer")
  add("--document", help="split text files by: chunk (default), paragraph, chapter, line, file")
  add("--key", help="key or column of the text in JSON lines and parquet; default text")
  add("--clean", help="function of a text file's bytes: lmjax.data.sources.text:gutenberg_body")
  add("--keep", help="keep only documents for which this function is true: package.module:name")
  add(
    "--validation",
    type=float,
    most=1,
    default=0.0,
    help="fraction of documents, by hash, in the validation split",
  )
  add("--deduplicate", action="store_true", help="keep only the first of equal documents")
  add("--workers", type=int, most=4096, default=os.cpu_count(), help="processes; the output does not depend on them")
  add("--shard_megabytes", type=int, least=1, default=64, help="size after which a shard ends")
  add("--folder", default="", help="tfds: data directory, by default ~/tensorflow_datasets")
  add("--inspect", metavar="PATH", help="show prepared data, or the batches of a run or a config")
  add("--rows", type=int, least=1, most=1000, default=2, help="inspect: rows to show")
  add("--tokens", type=int, least=1, default=12, help="inspect: tokens of each row to list")
  options, overrides = parse_overrides(parser, arguments)
  refuse(parser, options, BESIDE, NEEDS)
  (_inspect if options.inspect else _prepare_tfds if options.tfds else _prepare)(options, overrides)
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
  saved = expand(options.output) / "tokenizer"
  with console.status("tokenizer"):
    tokenizer = registry.load(saved) if saved.exists() and not options.tokenizer else data.make_tokenizer()
  rest = options.validation, options.deduplicate, keep, options.shard_megabytes * 2**20
  summary = prepared(Preparation(data.source, tokenizer, *rest), options.output, options.workers)
  console.print(summary or f"{options.output} is prepared already")
  if summary:
    given = shlex.quote(f"configs/text.py:prepared={options.output}")
    console.print(f"lmjax train --config {given} --workdir runs/NAME")


def _prepare_tfds(options: argparse.Namespace, overrides: dict[str, str]) -> None:
  if len(options.tfds) != 2 or options.tfds[0] != "tfds":
    raise UserError(f"prepare: unexpected arguments {' '.join(options.tfds)!r}; did you mean lmjax prepare tfds NAME?")
  with console.status(f"{options.tfds[1]}: downloading and preparing"):
    folder, examples = records.prepare_tfds(options.tfds[1], options.folder)
  console.print(f"{folder}: {', '.join(f'{name} {count:,}' for name, count in examples.items())}")


def _inspect(options: argparse.Namespace, overrides: dict[str, str]) -> None:
  """Prints rows, counts and lengths of prepared data, of a run, or of a config."""
  path, seed, batch = expand(options.inspect), 0, options.rows
  if path.is_dir() and not (path / "config.json").exists():
    data, tokenizer, counts = preview.open_prepared(path)
    console.print(f"{path}: {counts}; all checksums match")
  else:
    settings = load_config(path) if path.is_dir() else configs.load(options.inspect, overrides)
    data, tokenizer = open_data(settings, path if path.is_dir() else None)
    seed, batch = settings["seed"], settings["batch"]
  plot = path / "lengths.png" if path.is_dir() and os.access(path, os.W_OK) else None
  plot = None if plot and os.path.islink(plot) else plot  # which would be written wherever it points
  for part in preview.preview(data, tokenizer, batch, seed, options.rows, options.tokens, plot):
    show(part) if isinstance(part, Table) else console.print(part)
