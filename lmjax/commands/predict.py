"""Predict labels of texts, tags of their words, or answers to questions, with a fine-tuned model.

lmjax predict --workdir runs/sst2 --best --input sentences.txt
lmjax predict --workdir runs/mrpc --input pairs.jsonl --output predictions.jsonl
lmjax predict --workdir runs/ner --input sentences.txt
lmjax predict --workdir runs/sst2 --best --glue sst2 --input glue/SST-2/test.tsv --output submission

Each line of the input is a string, or a pair of them with a tab between; in a file that ends with .jsonl, an object
with the keys `text` and `other`. For tags, spaces separate words; a question comes before its paragraph, and a context
before its choices, which further tabs separate, or a list under `choices`. Each line of the output is the prediction
for a line of the input, as JSON. With --glue, the input is the file of a GLUE test set, and the output a folder, into
which the file to submit is written under GLUE's name.
"""

import json

from etils import epath

from lmjax import storage
from lmjax.commands.options import new_parser, parse
from lmjax.commands.values import add_step, new_file
from lmjax.inference import glue
from lmjax.inference.output import write_jsonl
from lmjax.inference.predict import make_predictor, read_texts, to_records
from lmjax.logs import console
from lmjax.parallel.sharding import use_layout
from lmjax.utils import files
from lmjax.utils.errors import UserError


def main(arguments: list[str]) -> int:
  """Runs `lmjax predict`."""
  parser = new_parser("predict", __doc__)
  parser.add_argument(
    "--workdir", required=True, help="the run folder, or a Hugging Face folder (or hf:owner/name) with a classifier"
  )
  parser.add_argument("--input", required=True, help="a file with a string in each line")
  parser.add_argument("--output", help="the file to write; default the terminal")
  parser.add_argument("--glue", choices=glue.TESTS, help="the test set of GLUE that the input is")
  add_step(parser)
  parser.add_argument("--batch", type=int, least=1, default=32, help="texts computed together")
  options = parse(parser, arguments)
  if options.output and not options.glue:
    new_file(options.output)  # found to be possible before the work
  if options.glue and not options.output:
    raise UserError("predict: --glue needs --output, the folder of the file to submit")
  numbers, texts = glue.read_test(options.input, options.glue) if options.glue else ([], [*read_texts(options.input)])
  if not texts:
    raise UserError(f"predict: {options.input} has no lines")
  loaded = storage.open(options.workdir, options.step).load()
  predictor = make_predictor(loaded, options.workdir)
  with use_layout(loaded.layout):
    records = list(to_records(texts, predictor(texts, options.batch)))
  if options.glue:
    lines = "".join(glue.submission(options.glue, numbers, records))
    files.make_folder(options.output)
    files.write(epath.Path(options.output) / glue.TESTS[options.glue].file, lines)
  elif options.output:
    write_jsonl(options.output, records)
  else:
    for record in records:
      console.print(json.dumps(record, ensure_ascii=False), markup=False)
  return 0
