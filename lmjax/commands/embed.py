"""Embed texts with a trained model.

    lmjax embed --workdir runs/bert --input sentences.txt --level sequence --output out.npz
    lmjax embed --workdir runs/bert --input sentences.txt --level token --words --output out.npz

A text a line; for `--level pair`, two with a tab between them. The output holds `embeddings` [texts, width] for
sequences and pairs, and for tokens an array [tokens, width] a text, named by its number: `0`, `1`, ...
"""

import argparse
import os
import zipfile
from collections.abc import Iterator

import numpy as np
from etils import epath
from rich.progress import Progress

from lmjax import config as configs
from lmjax.inference.embed import POOLINGS, Embedder, TokenizedText, chunks
from lmjax.logs import console
from lmjax.parallel.sharding import use_layout
from lmjax.storage.loading import load_model, sentence_settings
from lmjax.utils.errors import UserError

CHUNK = 2048  # lines in memory at a time, sorted by length among themselves


def main(arguments: list[str]) -> int:
  """Runs `lmjax embed`."""
  parser = argparse.ArgumentParser(
    prog="lmjax embed", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
  )
  parser.add_argument("--workdir", required=True, help="the run folder")
  parser.add_argument("--step", type=int, help="the checkpoint, by its step; default the newest")
  parser.add_argument("--input", required=True, help="a file of texts, one a line")
  parser.add_argument("--output", required=True, help="the .npz file to write")
  parser.add_argument("--level", choices=("token", "sequence", "pair"), default="sequence")
  parser.add_argument("--words", action="store_true", help="tokens: the mean over the pieces of each word")
  parser.add_argument(
    "--pooling", choices=POOLINGS, help="of sequences; default the folder's own; [CLS] for BERT; mean"
  )
  parser.add_argument("--layer", type=int, default=0, help="from 1; default the model's final vectors")
  parser.add_argument("--normalize", action="store_true", help="give every vector length 1")
  parser.add_argument("--batch", type=int, default=32, help="texts computed together")
  options = configs.parse(parser, arguments)
  if options.words and options.level != "token":
    raise UserError("embed: --words goes with --level token")
  count = sum(1 for _ in _lines(options.input))
  if not count:
    raise UserError(f"embed: {options.input} has no lines")

  opened = load_model(options.workdir, options.step)
  told = sentence_settings(options.workdir)
  usual = "first" if getattr(opened.task.model.config, "pooler", False) else "mean"
  try:
    embedder = Embedder(
      opened.task, opened.tokenizer, opened.length, options.pooling or told.get("pooling", usual), options.layer,
      options.normalize or told.get("normalize", False), options.batch,
    )  # fmt: skip
  except ValueError as error:
    raise UserError(f"embed: {error}") from error
  with use_layout(opened.layout):
    groups = chunks(_lines(options.input), CHUNK)
    with Progress(console=console, transient=True) as bar:
      shown = bar.track(groups, -(-count // CHUNK), description="embed")
      _write(epath.Path(options.output), options, embedder, opened.params, shown, count)
  console.print(f"{count:,} texts in {options.output}", markup=False)
  return 0


def _lines(path: str) -> Iterator[str]:
  """Yields the lines of a file, one at a time."""
  try:
    with epath.Path(path).open("r") as file:
      for line in file:
        yield line.rstrip("\r\n")
  except (OSError, UnicodeDecodeError) as error:
    raise UserError(f"embed: cannot read {path}: {error}") from error


def _read(embedder: Embedder, options: argparse.Namespace, line: str, number: int) -> TokenizedText:
  if options.level != "pair":
    return embedder.read(line, by_word=options.words)
  first, tab, second = line.partition("\t")
  if not tab:
    raise UserError(f"embed: {options.input}:{number + 1}: a pair is two texts with a tab between them")
  return embedder.read(first, second)


def _write(path: epath.Path, options, embedder: Embedder, params, groups, count: int) -> None:
  """Writes the arrays as they come; the file appears under its name when it is whole."""
  part = path.parent / (path.name + ".part")
  try:
    with part.open("wb") as file, zipfile.ZipFile(file, "w", zipfile.ZIP_STORED, allowZip64=True) as archive:
      if options.level == "token":
        number = 0
        for lines in groups:
          for vectors in embedder.tokens(params, [_read(embedder, options, x, number) for x in lines]):
            with archive.open(f"{number}.npy", "w", force_zip64=True) as entry:
              np.lib.format.write_array(entry, np.ascontiguousarray(vectors, np.float32))
            number += 1
      else:
        _write_sequences(archive, options, embedder, params, groups, count)
    os.replace(part, path) if "://" not in str(path) else part.rename(path)
  except OSError as error:
    raise UserError(f"embed: cannot write {path}: {error}") from error
  finally:
    part.unlink(missing_ok=True)


def _write_sequences(archive, options, embedder: Embedder, params, groups, count: int) -> None:
  """Writes one array, whose number of rows is known before the first of them."""
  number = 0
  with archive.open("embeddings.npy", "w", force_zip64=True) as entry:
    for lines in groups:
      texts = [_read(embedder, options, line, number + i) for i, line in enumerate(lines)]
      rows = np.ascontiguousarray(embedder.sequences(params, texts), np.float32)
      if not number:
        header = {"descr": "<f4", "fortran_order": False, "shape": (count, rows.shape[1])}
        np.lib.format.write_array_header_2_0(entry, header)
      entry.write(rows.tobytes())
      number += len(rows)
