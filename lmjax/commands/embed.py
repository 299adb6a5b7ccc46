"""Compute embeddings with a trained model.

    lmjax embed --workdir runs/bert --input sentences.txt --level sequence --output out.npz
    lmjax embed --workdir runs/bert --input sentences.txt --level token --words --output out.npz

The input has one sequence per line; for `--level pair`, two with a tab between them. The output has one array
`embeddings` [sequences, width] for sequences and pairs, and for tokens one array [tokens, width] per sequence, named by
the number of its line from 0: `0`, `1`, ...
"""

import argparse
from collections.abc import Iterator

from etils import epath

from lmjax import storage
from lmjax.commands.options import new_parser, parse
from lmjax.commands.values import add_step, new_file
from lmjax.inference.embed import POOLINGS, Embedder, TokenizedText, chunks, make_embedder
from lmjax.inference.output import write_npz, write_npz_rows
from lmjax.inference.progress import tracked
from lmjax.logs import console
from lmjax.parallel.sharding import use_layout
from lmjax.utils.errors import UserError, reason
from lmjax.utils.files import reading

CHUNK = 2048  # lines in memory at a time, batched by their length


def main(arguments: list[str]) -> int:
  """Runs `lmjax embed`."""
  parser = new_parser("embed", __doc__)
  parser.add_argument(
    "--workdir", required=True, help="the run folder, a Hugging Face or bilm-tf folder, or hf:owner/name"
  )
  add_step(parser)
  parser.add_argument("--input", required=True, help="a text file, one sequence per line")
  parser.add_argument("--output", required=True, type=new_file, help="the .npz file to write")
  parser.add_argument("--level", choices=("token", "sequence", "pair"), default="sequence")
  parser.add_argument("--words", action="store_true", help="for --level token: means over the tokens of each word")
  parser.add_argument("--pooling", choices=POOLINGS, help="default the folder's own, first for BERT, mean")
  parser.add_argument("--prompt", help="text that precedes every sequence; default the folder's own")
  parser.add_argument("--prompt_name", help="takes the prompt of this name from a sentence-transformers folder")
  parser.add_argument("--parse_special", action="store_true", help="read special tokens in the input as such")
  parser.add_argument("--layer", type=int, default=0, help="a layer from 1; default the output of the model")
  parser.add_argument("--normalize", action="store_true", help="scale every vector to length 1")
  parser.add_argument("--batch", type=int, least=1, default=32, help="sequences computed together")
  options = parse(parser, arguments)
  if options.words and options.level != "token":
    raise UserError("embed: --words needs --level token")
  if options.prompt is not None and options.prompt_name is not None:
    raise UserError("embed: give --prompt or --prompt_name, not both")
  count = sum(1 for _ in _read_lines(options.input))
  if not count:
    raise UserError(f"embed: {options.input} has no lines")

  loaded = storage.open(options.workdir, options.step).load()
  embedder = make_embedder(
    loaded, options.workdir, options.pooling, options.layer, options.normalize, options.batch, options.prompt,
    options.prompt_name, options.parse_special,
  )  # fmt: skip
  with use_layout(loaded.layout):
    groups = chunks(_read_lines(options.input), CHUNK)
    groups = tracked(_encode(embedder, options, groups), "embed", -(-count // CHUNK), f"times {CHUNK:,} lines")
    if options.level == "token":
      write_npz(options.output, (array for texts in groups for array in embedder.tokens(loaded.params, texts)))
    else:
      blocks = (embedder.sequences(loaded.params, texts) for texts in groups)
      write_npz_rows(options.output, "embeddings", blocks, count)
  console.print(f"{options.output}: embeddings of {count:,} lines")
  return 0


def _read_lines(path: str) -> Iterator[str]:
  """Yields the lines of a file, one at a time."""
  try:
    with reading(path), epath.Path(path).open("rb") as file:
      for line in file:
        yield line.decode().rstrip("\r\n")
  except UnicodeDecodeError as error:
    raise UserError(f"embed: cannot read {path}: {reason(error)}") from error


def _encode(embedder: Embedder, options: argparse.Namespace, groups) -> Iterator[list[TokenizedText]]:
  """Yields the lines of each group as inputs of the model."""
  number = 0
  for lines in groups:
    texts = []
    for line in lines:
      number += 1
      first, tab, second = line.partition("\t")
      if options.level == "pair" and not tab:
        raise UserError(f"embed: {options.input}:{number}: a pair is two sequences with a tab between them")
      pair = options.level == "pair"
      texts.append(embedder.encode_text(first, second) if pair else embedder.encode_text(line, by_word=options.words))
    yield texts
