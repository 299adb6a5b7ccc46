"""Tokenize a corpus once, into shards that training reads; look at data as a model will see it.

lmjax prepare --files 'books/*.txt.gz' --tokenizer my_tokenizer --output data/books --validation 0.01 --deduplicate
lmjax prepare --config configs/text.py:files='my/*.txt' --output data/mine     (its source and its tokenizer)
lmjax train --config configs/text.py:prepared=data/books --workdir runs/books
lmjax prepare --inspect data/books                 (or a run folder, or configs/text.py:files='my/*.txt')
lmjax prepare tfds lm1b                            (download a TFDS data set, kept as array_record)
"""

import argparse
import os
import time

import numpy as np
from etils import epath
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from lmjax import config as configs
from lmjax.data import preview
from lmjax.data.objectives.causal import Text
from lmjax.data.sources import base, records, shards, text
from lmjax.data.sources.pairs import Pair
from lmjax.data.sources.write_shards import Preparation
from lmjax.data.tokenizers import registry
from lmjax.data.tokenizers.base import Tokenizer
from lmjax.experiment import load_config
from lmjax.logs import console, show
from lmjax.utils.errors import UserError, did_you_mean


def main(arguments: list[str]) -> int:
  """Runs `lmjax prepare`."""
  parser = argparse.ArgumentParser(
    prog="lmjax prepare", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
  )
  parser.add_argument("tfds", nargs="*", help="tfds NAME: prepare that data set of TensorFlow Datasets")
  parser.add_argument("--output", help="the folder to write")
  parser.add_argument("--files", action="append", help="text, .jsonl or .parquet files, by path or glob, plain or .gz")
  parser.add_argument("--config", help="take source and tokenizer from this config instead")
  parser.add_argument("--tokenizer", help="the tokenizer to use: a folder, a file or a run")
  parser.add_argument("--algorithm", choices=tuple(registry.ALGORITHMS), default="bpe", help="or train one: its kind")
  parser.add_argument("--size", type=int, default=8000, help="and its number of ids")
  parser.add_argument(
    "--document", default="chunk", help="text files are cut by: chunk, paragraph, chapter, line, file"
  )
  parser.add_argument("--key", default="text", help="where the text is, in .jsonl and .parquet")
  parser.add_argument("--clean", help="a function over a text file's bytes: lmjax.data.sources.text:gutenberg_body")
  parser.add_argument("--keep", help="keep the texts for which this function is true, package.module:name")
  parser.add_argument("--validation", type=float, default=0.0, help="share of documents, by their hash, to hold out")
  parser.add_argument("--deduplicate", action="store_true", help="keep the first of documents that are the same")
  parser.add_argument("--workers", type=int, default=os.cpu_count(), help="processes; what is written is the same")
  parser.add_argument("--shard_megabytes", type=int, default=64, help="size at which a shard ends")
  parser.add_argument("--folder", default="", help="tfds: where data sets are kept; default ~/tensorflow_datasets")
  parser.add_argument("--inspect", metavar="PATH", help="show prepared data, or the batches of a run or a config")
  parser.add_argument("--rows", type=int, default=2, help="inspect: rows to show")
  parser.add_argument("--tokens", type=int, default=12, help="inspect: tokens of each row to list")
  options, overrides = configs.parse_overrides(parser, arguments)
  if options.inspect:
    return _inspect(options, overrides)
  if options.tfds:
    return _prepare_tfds(options)
  return _prepare(options, overrides)


def _prepare(options: argparse.Namespace, overrides: dict[str, str]) -> int:
  if not options.output or "://" in options.output:
    raise UserError("prepare: where to? give --output FOLDER, a local one (copy it to a bucket afterwards)")
  if bool(options.files) == bool(options.config):
    raise UserError("prepare: what? give either --files or --config")
  if options.workers < 0 or options.shard_megabytes < 1:
    raise UserError("prepare: --workers is at least 0 and --shard_megabytes at least 1")
  kept = epath.Path(options.output) / "tokenizer"
  if options.config:
    data = configs.build(configs.load(options.config, overrides)["data"], "data")
    source, make = data.source, data.make_tokenizer
  else:
    source = _source(options)

    def make() -> Tokenizer:
      if options.tokenizer:
        return registry.load(options.tokenizer)
      return registry.train(options.algorithm, base.texts(source), options.size)

  with console.status("tokenizer"):
    tokenizer = registry.load(kept) if kept.exists() and not options.tokenizer else make()
  keep = configs.resolve(options.keep, "keep") if options.keep else None
  try:
    work = Preparation(
      source, tokenizer, options.validation, options.deduplicate, keep, options.shard_megabytes * 2**20
    )
  except ValueError as error:
    raise UserError(f"prepare: {error}") from error
  _run(work, options)
  return 0


def _source(options: argparse.Namespace) -> base.Source:
  files = tuple(options.files)
  names = {path.name.removesuffix(".gz").rpartition(".")[2] for path in base.expand_paths(files)}
  if names & {"jsonl", "parquet"} and len(names) > 1:
    raise UserError(f"prepare: --files are of several kinds ({', '.join(sorted(names))}); prepare them one by one")
  if names == {"jsonl"}:
    return records.JsonLines(files, options.key)
  if names == {"parquet"}:
    return records.Parquet(files, options.key)
  clean = configs.resolve(options.clean, "clean") if options.clean else None
  try:
    return text.TextFiles(files, options.document, clean=clean)
  except ValueError as error:
    raise UserError(f"prepare: {error}") from error


def _run(work: Preparation, options: argparse.Namespace) -> None:
  columns = (TextColumn("{task.completed:,.0f} of {task.total:,.0f} documents"), BarColumn())
  counts, began, first = None, time.perf_counter(), None
  with Progress(*columns, TextColumn("{task.fields[speed]}"), TimeRemainingColumn(), console=console) as progress:
    bar = progress.add_task("prepare", total=len(work.source), speed="")
    for done, counts in work.run(options.output, options.workers):
      first = first or counts["bytes"]
      speed = f"{(counts['bytes'] - first) / 1e6 / (time.perf_counter() - began):.1f} MB/s"
      progress.update(bar, completed=done, speed=speed)
  if counts is None:
    console.print(f"{options.output} is prepared already", markup=False)
    return
  seconds = time.perf_counter() - began
  said = ", ".join(f"{counts[name]:,} {name}" for name in ("documents", "tokens", "duplicates", "filtered", "bad"))
  speed = counts["bytes"] / 1e6 / seconds / max(options.workers, 1)
  console.print(f"{options.output}: {said}; {seconds:.1f} s, {speed:.2f} MB/s of text a process", markup=False)
  console.print(
    f"next: lmjax train --config configs/text.py:prepared={options.output} --workdir runs/NAME", markup=False
  )


def _prepare_tfds(options: argparse.Namespace) -> int:
  if len(options.tfds) != 2 or options.tfds[0] != "tfds":
    known = did_you_mean(options.tfds[0], ["tfds"])
    raise UserError(f"prepare: {' '.join(options.tfds)!r} is nothing to prepare{known}: lmjax prepare tfds NAME")
  import tensorflow_datasets as tfds

  builder = records.tfds_builder(options.tfds[1], options.folder)
  with console.status(f"{options.tfds[1]}: downloading and preparing"):
    try:
      beam = _beam_options()
      builder.download_and_prepare(file_format="array_record", download_config=tfds.download.DownloadConfig(**beam))
    except (OSError, ImportError, RuntimeError) as error:  # no network, no Beam, no space
      reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
      raise UserError(f"prepare: {options.tfds[1]} could not be prepared: {reason}") from error
  splits = ", ".join(f"{name} {split.num_examples:,}" for name, split in builder.info.splits.items())
  console.print(f"{builder.data_dir}: {splits}", markup=False)
  return 0


def _beam_options() -> dict:
  """Returns Beam's options where Beam is installed; a data set that wants it and finds none says so itself."""
  try:
    import apache_beam as beam
  except ImportError:
    return {}
  return {"beam_options": beam.options.pipeline_options.PipelineOptions()}


def _inspect(options: argparse.Namespace, overrides: dict[str, str]) -> int:
  """Prints rows, counts and lengths of prepared data, of a run, or of a config."""
  path = epath.Path(options.inspect)
  seed, batch = 0, options.rows
  if path.is_dir() and not (path / "config.json").exists():
    index = shards.read_index(path)
    shards.check_sums(path)
    told = ", ".join(f"{value:,} {key}" for key, value in index["counts"].items())
    console.print(f"{path}: {told}; checksums are right", markup=False)
    tokenizer = registry.load(path)
    source = shards.Prepared(str(path), next(iter(index["splits"])))
    data = Text(source, source, 256)
  else:
    settings = load_config(path) if path.is_dir() else configs.load(options.inspect, overrides)
    data, seed = configs.build(settings["data"], "data"), settings["seed"]
    kept = path / "tokenizer"
    tokenizer = registry.load(kept) if path.is_dir() and kept.exists() else data.make_tokenizer()
    batch = settings["batch"]
  batches = data.train(tokenizer, batch, seed)
  shown = next(batches)
  batches.close()
  for row in range(min(options.rows, batch)):
    console.rule(f"row {row}", align="left")
    console.print(preview.render_row(shown, row, tokenizer))
    show(preview.token_table(shown, row, tokenizer, options.tokens))
  lengths = _lengths(data.source, tokenizer)
  shape = f"{batch}x{data.length}"
  console.rule("counts", align="left")
  console.print(
    f"{len(data.source):,} documents, {np.mean(lengths):,.0f} tokens each (median {np.median(lengths):,.0f}, longest "
    f"{max(lengths):,}, of {len(lengths):,} looked at); a batch is {shape}, {batches.padding:.1%} of it padding",
    markup=False,
  )
  show(preview.bars(lengths))
  if path.is_dir() and os.access(path, os.W_OK):
    preview.plot_lengths(lengths, path / "lengths.png")
    console.print(f"the same as a plot: {path / 'lengths.png'}", markup=False)
  return 0


def _lengths(source: base.Source, tokenizer: Tokenizer, most: int = 5000) -> list[int]:
  """Returns the tokens of up to `most` documents, evenly taken."""
  found = [source[i] for i in range(0, len(source), max(len(source) // most, 1))]
  encoded = [len(f.ids) for f in found if isinstance(f, base.Encoded)]
  written = [f if isinstance(f, str) else f.target for f in found if isinstance(f, str | Pair)]
  lengths = encoded + [len(ids) for ids in tokenizer.encode_many(written)]
  if not lengths:
    raise UserError("prepare: the source holds no document that can be read")
  return lengths
