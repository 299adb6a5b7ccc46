"""Convert models to and from the formats of Hugging Face and llama.cpp.

    lmjax convert --input runs/gpt2 --output my-gpt2        write a run folder as a Hugging Face folder
    lmjax convert --input model.gguf --output my-model      write a GGUF file as a Hugging Face folder
    lmjax convert --input my-gpt2 --output my-gpt2.gguf     write a model for llama.cpp, in float16
    lmjax convert --input runs/lora --output adapter --format peft     write what a LoRA run trained, for PEFT
    lmjax convert --input runs/gpt2 --output program --format stablehlo     write a program that runs without lmjax
    lmjax convert --input adapter --output my-gpt2          merge an adapter of PEFT into its base (--base DIR)
    lmjax convert --input runs/gpt2 --push me/my-gpt2       upload it to the Hugging Face Hub
    lmjax convert --check path/to/hf                        compare the logits of lmjax and transformers

Every command takes a Hugging Face folder, a GGUF file or a model of the Hub (hf:owner/name, hf:owner/name@REVISION) in
place of a run folder.
"""

import argparse
import os
import tempfile

from lmjax.commands.options import new_parser, parse, refuse
from lmjax.commands.values import add_step
from lmjax.inference.parity import check
from lmjax.logs import console
from lmjax.storage.convert import FORMATS, SUFFIX, convert
from lmjax.utils import hub
from lmjax.utils.errors import UserError

TOLERANCE = 1e-3  # of the largest value: float32 rounds to 1e-7, and deep models multiply that


def main(arguments: list[str]) -> int:
  """Runs `lmjax convert`."""
  parser = new_parser("convert", __doc__)
  parser.add_argument("--input", help="a run folder, a Hugging Face folder, a GGUF file, or hf:owner/name")
  parser.add_argument("--output", help="the Hugging Face folder or the GGUF file to write")
  parser.add_argument("--push", metavar="OWNER/NAME", help="upload what is written to the Hugging Face Hub")
  parser.add_argument("--private", action="store_true", help="of --push: a new repository is not public")
  parser.add_argument("--format", choices=FORMATS, help="default gguf-f16 for an output that ends with .gguf")
  parser.add_argument("--shape", metavar="ROWSxLENGTH", type=_shape, help="of a program's inputs; default any")
  parser.add_argument("--base", metavar="DIR", help="of an adapter: the Hugging Face folder that it changes")
  add_step(parser)
  parser.add_argument("--without_tokenizer", action="store_true", help="write the model without its tokenizer")
  parser.add_argument("--check", metavar="DIR", help="compare the logits of a folder with those of transformers")
  options = parse(parser, arguments)
  only = "input output push format shape base step without_tokenizer"
  refuse(parser, options, {"check": only}, {"push": "private"})
  if options.check:
    difference, largest = check(options.check)
    console.print(f"largest difference of logits: {difference:.2e}, of values up to {largest:.3g}")
    if not difference <= TOLERANCE * max(largest, 1.0):
      raise UserError(f"convert: lmjax and transformers compute different values from {options.check}")
    return 0
  if options.shape and options.format != "stablehlo":
    raise UserError("convert: --shape has no effect without --format stablehlo")
  if not options.input or not (options.output or options.push):
    raise UserError("convert: --input is required, with --output or --push; or --check")
  pushed = hub.check_push(options.push) if options.push else ""
  with tempfile.TemporaryDirectory() as scratch:
    name = pushed.partition("/")[2].removesuffix(SUFFIX) + (SUFFIX if (options.format or "").startswith("gguf") else "")
    output = options.output or os.path.join(scratch, name)
    tokenizer = not options.without_tokenizer
    convert(options.input, output, options.step, tokenizer, options.format, options.base, options.shape)
    if pushed:
      console.print(f"{hub.push(pushed, os.path.expanduser(output), options.private)}: written; open it as hf:{pushed}")
  if not options.output:
    return 0
  reader = "run it with llama.cpp" if options.output.endswith(SUFFIX) else "load it with transformers' from_pretrained"
  reader = "load it with PEFT's PeftModel.from_pretrained" if options.format == "peft" else reader
  reader = "run it with jax.export.deserialize" if options.format == "stablehlo" else reader
  console.print(f"{options.output}: written; {reader}")
  return 0


def _shape(text: str) -> tuple[int, int]:
  rows, _, length = text.partition("x")
  if not (rows.isdecimal() and length.isdecimal() and int(rows) and int(length)):
    raise argparse.ArgumentTypeError(f"{text!r} is not a shape such as 1x128")
  return int(rows), int(length)
