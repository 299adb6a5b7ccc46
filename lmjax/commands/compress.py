"""Write a smaller copy of a model: quantized, pruned, or both.

    lmjax compress --workdir runs/gpt2 --output small --quantize int8
    lmjax compress --workdir model.gguf --output small --quantize int4 --group 64 --gptq --calibration text.txt
    lmjax compress --workdir runs/gpt2 --output sparse --prune magnitude --sparsity 0.5
    lmjax compress --workdir model.gguf --output sparse --prune wanda --structure 2:4 --calibration text.txt
    lmjax compress --workdir runs/gpt2 --output smaller --remove heads=0.5 --remove mlp=0.25 --score taylor

The copy is opened by every command that opens the model. First comes --vocabulary, then
--remove, --mask, --prune and --quantize.
"""

import dataclasses
import json

from lmjax import storage
from lmjax.commands.options import new_parser, parse
from lmjax.commands.values import add_step
from lmjax.compression.one_shot import SCORES
from lmjax.compression.quantize import DTYPES
from lmjax.compression.remove import SCORES as REMOVAL_SCORES
from lmjax.compression.remove import STRUCTURES
from lmjax.inference.before_after import WHAT, check, measure
from lmjax.inference.compress import compress, task_batches, used_tokens, windows
from lmjax.inference.methods import TOKENS, choose
from lmjax.inference.output import show
from lmjax.logs import console
from lmjax.storage.compressed import refuse_existing
from lmjax.utils.files import write


def main(arguments: list[str]) -> int:
  """Runs `lmjax compress`."""
  parser = new_parser("compress", __doc__)
  parser.add_argument(
    "--workdir", required=True, help="a run folder, a GGUF file, a Hugging Face folder, or hf:owner/name"
  )
  parser.add_argument("--output", required=True, help="the folder to write, which does not exist yet")
  add_step(parser)
  parser.add_argument(
    "--remove", action="append", metavar="WHAT=FRACTION", default=[], help=f"make {', '.join(STRUCTURES)} fewer"
  )
  vocabulary = "a text file: tokens that it does not use leave the tokenizer and the tables; several in turn"
  parser.add_argument("--vocabulary", action="append", metavar="FILE", default=[], help=vocabulary)
  parser.add_argument("--score", choices=REMOVAL_SCORES, help="what is removed first; default magnitude")
  parser.add_argument("--quantize", choices=tuple(DTYPES), help="the type of kernels")
  parser.add_argument("--group", type=int, default=0, help="inputs that share a scale; default all of an output")
  parser.add_argument("--asymmetric", action="store_true", help="an offset for each scale")
  parser.add_argument("--gptq", action="store_true", help="round by what kernels read, instead of to the nearest")
  parser.add_argument("--awq", action="store_true", help="multiply the inputs that matter before they are rounded")
  parser.add_argument("--activations", action="store_true", help="with int8: round what kernels read, too (w8a8)")
  parser.add_argument("--smooth", action="store_true", help="--activations after SmoothQuant")
  parser.add_argument("--tables", choices=(*DTYPES, "none"), default="int8", help="the type of vocabulary tables")
  parser.add_argument("--table_group", type=int, default=64, help="values of a row that share a scale; 0 is all")
  parser.add_argument("--prune", choices=SCORES, help="what the values are ranked by that become zero")
  parser.add_argument("--mask", metavar="MODEL", help="kernels become zero where those of another saved model are")
  parser.add_argument("--sparsity", type=float, help="the fraction of values that become zero; default 0.5")
  parser.add_argument("--structure", help="what is compared: layer, output, global, or N:M with N of M kept")
  parser.add_argument("--targets", help="a regular expression for the kernels; default all of them")
  parser.add_argument(
    "--calibration", metavar="FILE", help="a text file for the model to read: wanda, sparsegpt, GPTQ, AWQ, taylor"
  )
  parser.add_argument("--tokens", type=int, least=1, default=TOKENS, help="of the calibration text")
  parser.add_argument("--seed", type=int, default=0, help="of random scores and of the places in the text")
  parser.add_argument("--measure", default=",".join(WHAT), help="before and after; empty for nothing")
  parser.add_argument("--config", help="of a model that is not a run: a config whose evaluators measure it")
  parser.add_argument("--report", metavar="FILE", help="a JSON file for all that is printed")
  options = parse(parser, arguments)
  refuse_existing(options.output)
  removals, methods = choose(options)
  needing = any(method.needs_inputs for method in methods)
  taylor = any(removal.needs_batches for removal in removals)
  what = [name for name in options.measure.split(",") if name]
  saved = storage.open(options.workdir, options.step)
  check(what, saved, options.config)
  record, inputs, batches = {}, None, []
  if taylor:
    batches = task_batches(saved, options.calibration, options.tokens, options.seed)
    record = {"gradients": {"file": options.calibration, "batches": len(batches), "seed": options.seed}}
  if needing:
    inputs = windows(saved, options.calibration, options.tokens, options.seed)
    record |= {"calibration": {"file": options.calibration, "tokens": int(inputs["inputs"].size), "seed": options.seed}}
  smaller = used_tokens(saved, options.vocabulary) if options.vocabulary else None
  record |= {"vocabulary": options.vocabulary} if options.vocabulary else {}
  report = compress(saved, options.output, methods, record, inputs, removals, batches, smaller)
  if report.errors:
    show(report.table().rich())
  for line in report.lines():
    console.print(line)
  console.print(f"{options.output}: written")
  measured = measure(saved, options.output, what, options.config)
  if what:
    show(measured.table().rich())
  if options.report:
    write(options.report, json.dumps(dataclasses.asdict(report) | dataclasses.asdict(measured), indent=2) + "\n")
  return 0
