"""Continue prompts with a trained model.

    lmjax generate --workdir runs/quickstart --prompt "Return the" --num_samples 3 --temperature 0.8
    lmjax generate --workdir runs/quickstart --prompts_file prompts.jsonl --output continued.jsonl
    lmjax generate --workdir runs/m30k --prompt "A man sleeps." --beams 4
    lmjax generate --workdir runs/large --draft runs/small --prompt "Once" --draft_tokens 6
    lmjax generate --workdir runs/images --image picture.png --prompt "describe" --temperature 0

A prompts file has one prompt per line, plain or as a JSON object with a `prompt`. The output has one JSON object per
continuation, with `prompt`, `sample` and `text`.
"""

import sys

from lmjax import storage
from lmjax.commands.options import new_parser, parse, refuse
from lmjax.commands.values import add_step, new_file
from lmjax.decode.logits import Sampling
from lmjax.inference.generate import Generator, Row, in_order, read_prompts
from lmjax.inference.output import main_process_output, write_jsonl
from lmjax.inference.progress import tracked
from lmjax.parallel import processes
from lmjax.parallel.sharding import use_layout
from lmjax.utils.errors import UserError

BESIDE = {
  "image": "beams window parse_special",
  "beams": "temperature top_k top_p min_p repetition_penalty stop seed",
  "draft": "beams image repetition_penalty",
}  # what has no effect with it
NEEDS = {"beams": "length_penalty", "temperature": "top_k top_p min_p", "draft": "draft_tokens"}


def main(arguments: list[str]) -> int:
  """Runs `lmjax generate`."""
  parser = new_parser("generate", __doc__)
  parser.add_argument("--workdir", required=True, help="the run folder, a Hugging Face folder, or hf:owner/name")
  add_step(parser)
  parser.add_argument("--prompt", action="append", help="a prompt; may be given several times")
  parser.add_argument("--image", help="a PNG or JPEG file, for a model that reads images; prompts are about it")
  parser.add_argument("--prompts_file", help="a file of prompts, one per line, or JSONL with a `prompt`")
  parser.add_argument("--output", type=new_file, help="a JSONL file for the continuations; default the terminal")
  parser.add_argument(
    "--max_new_tokens", type=int, least=1, help="of a continuation; default 128, of a decoder at most half its length"
  )
  parser.add_argument("--num_samples", type=int, least=1, most=10**6, default=1, help="continuations of each prompt")
  parser.add_argument("--batch", type=int, least=1, default=16, help="continuations computed together")
  parser.add_argument("--seed", type=int, default=0, help="of the first continuation of each prompt")
  parser.add_argument("--temperature", type=float, default=1.0, help="0 is greedy")
  parser.add_argument("--top_k", type=int, default=0, help="sample from so many of the likeliest tokens; 0 is all")
  parser.add_argument("--top_p", type=float, most=1, default=1.0, help="sample from the likeliest of this probability")
  parser.add_argument("--min_p", type=float, most=1, default=0.0, help="leave out tokens below this share of the top")
  parser.add_argument("--repetition_penalty", type=float, default=1.0, help="divides scores of tokens before")
  parser.add_argument("--beams", type=int, default=0, help="beam search with so many beams, instead of sampling")
  parser.add_argument(
    "--length_penalty", type=float, most=100, default=0.6, help="of beam search; 0 prefers short ones"
  )
  parser.add_argument("--stop", action="append", default=[], help="a string before which a continuation ends")
  parser.add_argument("--draft", help="a smaller model of the same vocabulary, which proposes tokens to this one")
  parser.add_argument("--draft_tokens", type=int, least=1, most=64, default=4, help="that it proposes at a time")
  parser.add_argument("--window", action="store_true", help="continue beyond the model's length, forgetting the start")
  parser.add_argument("--parse_special", action="store_true", help="read special tokens in prompts as such")
  parser.add_argument("--dtype", choices=("float32", "bfloat16"), help="of weights and computation; default the run's")
  options = parse(parser, arguments)
  if bool(options.prompt) == bool(options.prompts_file):
    raise UserError("generate: give --prompt or --prompts_file")
  if "" in options.stop:
    raise UserError("generate: --stop is empty, and would end every continuation before it starts")
  refuse(parser, options, {other: names for other, names in BESIDE.items() if getattr(options, other)}, NEEDS)
  try:
    sampling = Sampling(options.temperature, options.top_k, options.top_p, options.min_p, options.repetition_penalty)
  except ValueError as error:
    raise UserError(f"generate: {error}") from error
  if options.beams and not options.num_samples <= options.beams:
    raise UserError(f"generate: --num_samples {options.num_samples} is more than --beams {options.beams}")
  prompts = options.prompt or read_prompts(options.prompts_file)
  rows = [(prompt, sample) for prompt in prompts for sample in range(options.num_samples)]
  with processes.joined(), main_process_output():
    loaded = storage.open(options.workdir, options.step).load(options.dtype)
    most = max(loaded.length // 2, 1) if loaded.task.model.kind == "decoder" and not options.window else 128
    new = options.max_new_tokens or min(128, most)
    generator = Generator(
      loaded, sampling, new, options.beams, options.length_penalty, tuple(options.stop),
      options.seed, options.dtype, options.parse_special, window=options.window,
      draft=storage.open(options.draft).load(options.dtype) if options.draft else None, proposed=options.draft_tokens,
    )  # fmt: skip
    if options.window:
      print(f"lmjax: text continues from the last {loaded.length // 2:,} to {loaded.length:,} tokens", file=sys.stderr)
    with use_layout(loaded.layout):
      if options.output:
        ended = tracked(generator.all_texts(rows, options.batch, options.image), "generate", len(rows), "texts")
        records = (
          {"prompt": prompt, "sample": sample, "text": text}
          for (prompt, sample), text in zip(rows, in_order(ended), strict=True)
        )
        write_jsonl(options.output, records)
      elif len(rows) == 1 and not options.beams:
        _stream(generator, rows, options.image)
      else:
        _print(generator, rows, options.batch, options.image)
    if options.draft:
      print(f"lmjax: {generator.draft_counts}", file=sys.stderr)
  return 0


def _stream(generator: Generator, rows: list[Row], image: str | None) -> None:
  parts = generator.about_image(image, rows, every=1) if image else generator.stream(rows, every=1)
  sys.stdout.write(f"{rows[0][0]}\n" if image else rows[0][0])
  for (text,) in parts:
    sys.stdout.write(text)
    sys.stdout.flush()
  print()


def _print(generator: Generator, rows: list[Row], batch: int, image: str | None) -> None:
  texts = in_order(generator.all_texts(rows, batch, image))
  for (prompt, sample), text in zip(rows, texts, strict=True):
    between = "\n" if generator.beams or image else ""
    print(f"--- {'best' if generator.beams else 'sample'} {sample}\n{prompt}{between}{text}")
