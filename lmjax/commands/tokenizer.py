"""Train a tokenizer; convert text to ids and back.

lmjax tokenizer train --algorithm bpe --size 8000 --files 'my/*.txt' --output my_tokenizer
lmjax tokenizer encode --path my_tokenizer "Some text"
echo 12 7 99 | lmjax tokenizer decode --path my_tokenizer
"""

import argparse
import sys

from lmjax.commands.options import new_parser, parse, refuse
from lmjax.data.sources import base, python_docs
from lmjax.data.sources.files import open_files
from lmjax.data.tokenizers import registry
from lmjax.utils.errors import UserError
from lmjax.utils.files import new_folder


def main(arguments: list[str]) -> int:
  """Runs `lmjax tokenizer`."""
  parser = new_parser("tokenizer", __doc__)
  parser.add_argument("action", choices=("train", "encode", "decode"))
  parser.add_argument("text", nargs="*", help="text to encode or ids to decode, by default standard input")
  parser.add_argument("--path", help="tokenizer to use: a folder, a file or a run")
  parser.add_argument("--algorithm", choices=tuple(registry.ALGORITHMS), default="bpe")
  parser.add_argument("--size", type=int, least=1, default=8000, help="number of ids, where it can be chosen")
  parser.add_argument("--files", action="append", help="text to train on, by default the documentation of this Python")
  parser.add_argument("--output", help="folder for the trained tokenizer")
  options = parse(parser, arguments)
  refuse(parser, options, {"path": "files algorithm size output"} if options.action != "train" else {})
  if options.action == "train":
    return _train(options)
  if not options.path:
    raise UserError(f"tokenizer {options.action}: --path is required, the folder of a tokenizer")
  tokenizer = registry.load(options.path)
  try:
    text = " ".join(options.text) if options.text else sys.stdin.buffer.read().decode()
  except UnicodeDecodeError as error:
    raise UserError(f"tokenizer {options.action}: the text is not UTF-8") from error
  if options.action == "encode":
    print(*tokenizer.encode(text))
    return 0
  try:
    ids = [int(word) for word in text.replace(",", " ").split()]
  except ValueError as error:
    raise UserError(f"tokenizer decode: ids must be integers: {error}") from error
  for i in ids:
    if not 0 <= i < tokenizer.size:
      raise UserError(f"tokenizer decode: id {i} is out of range, the tokenizer has {tokenizer.size} ids")
  print(tokenizer.decode(ids))
  return 0


def _train(options: argparse.Namespace) -> int:
  if not options.output:
    raise UserError("tokenizer train: --output is required, the folder to write")
  source = open_files(options.files) if options.files else python_docs.PythonDocs()
  with new_folder(options.output) as folder:
    tokenizer = registry.train(options.algorithm, base.texts(source), options.size)
    tokenizer.save(folder)
  print(f"{tokenizer.size} ids in {options.output}")
  return 0
