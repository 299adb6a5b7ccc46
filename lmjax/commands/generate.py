"""Continue prompts with a trained model.

    lmjax generate --workdir runs/quickstart --prompt "Return the" --num_samples 3 --temperature 0.8
    lmjax generate --workdir runs/quickstart --prompts_file prompts.jsonl --output continued.jsonl
    lmjax generate --workdir runs/m30k --prompt "A man sleeps." --beams 4

A prompts file has a text a line, or JSON objects with a `prompt`; the output has their `prompt`, `sample` and `text`.
"""

import argparse
import json
import os
import sys

import jax
import jax.numpy as jnp
from etils import epath

from lmjax import config as configs
from lmjax.decode.beam import Beam
from lmjax.decode.logits import Sampling
from lmjax.decode.sample import Sampler
from lmjax.inference.stream_text import beam_texts, continue_texts
from lmjax.parallel import hosts
from lmjax.parallel.sharding import use_layout
from lmjax.storage.loading import load_model, main_process_output
from lmjax.utils.errors import UserError


def main(arguments: list[str]) -> int:
  """Runs `lmjax generate`."""
  parser = argparse.ArgumentParser(
    prog="lmjax generate", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
  )
  parser.add_argument("--workdir", required=True, help="the run folder")
  parser.add_argument("--step", type=int, help="the checkpoint, by its step; default the newest")
  parser.add_argument("--prompt", action="append", help="a text to continue; may be given several times")
  parser.add_argument("--prompts_file", help="prompts, a line each, or JSONL with a `prompt`")
  parser.add_argument("--output", help="JSONL file for the continuations; default the terminal")
  parser.add_argument("--max_new_tokens", type=int, default=128)
  parser.add_argument("--num_samples", type=int, default=1, help="continuations of each prompt")
  parser.add_argument("--batch", type=int, default=16, help="rows computed together")
  parser.add_argument("--seed", type=int, default=0)
  parser.add_argument("--temperature", type=float, default=1.0, help="0 is greedy")
  parser.add_argument("--top_k", type=int, default=0)
  parser.add_argument("--top_p", type=float, default=1.0)
  parser.add_argument("--min_p", type=float, default=0.0)
  parser.add_argument("--repetition_penalty", type=float, default=1.0)
  parser.add_argument("--beams", type=int, default=0, help="search with so many beams instead of drawing")
  parser.add_argument("--length_penalty", type=float, default=0.6, help="of beam search; 0 prefers short texts")
  parser.add_argument("--stop", action="append", default=[], help="end a continuation before this text")
  parser.add_argument("--dtype", choices=("float32", "bfloat16"), help="of weights and computation; default the run's")
  options = configs.parse(parser, arguments)
  if bool(options.prompt) == bool(options.prompts_file):
    raise UserError("generate: give --prompt or --prompts_file")
  for name in ("num_samples", "batch", "max_new_tokens"):
    if getattr(options, name) < 1:
      raise UserError(f"generate: --{name} is at least 1, not {getattr(options, name)}")
  try:
    sampling = Sampling(options.temperature, options.top_k, options.top_p, options.min_p, options.repetition_penalty)
  except ValueError as error:
    raise UserError(f"generate: {error}") from error
  if options.beams and not options.num_samples <= options.beams:
    raise UserError(f"generate: {options.beams} beams have no {options.num_samples} samples to give")
  prompts = options.prompt or read_prompts(options.prompts_file)
  with hosts.joined(), main_process_output():
    _generate(options, sampling, prompts)
  return 0


def _generate(options, sampling: Sampling, prompts: list[str]) -> None:
  opened = load_model(options.workdir, options.step, dtype=options.dtype)
  if not hasattr(opened.task.model, "extend"):
    raise UserError(f"generate: {options.workdir} holds {type(opened.task.model).__name__}, which writes no text")
  with use_layout(opened.layout):
    model, max_tokens, end = opened.task.model, opened.length, opened.tokenizer.end
    if hasattr(model, "read"):
      max_tokens = options.max_new_tokens + 1  # a target has no longest length
    sampler = Sampler(model, max_tokens, sampling, end)
    if options.beams:
      sampler = Beam(model, max_tokens, options.beams, options.length_penalty, end)
    params = sampler.prepare(opened.params["model"])
    if options.dtype == "bfloat16":
      params = jax.tree.map(lambda p: p.astype(jnp.bfloat16), params)
    rows = [(prompt, sample) for prompt in prompts for sample in range(options.num_samples)]
    groups = [rows[i : i + options.batch] for i in range(0, len(rows), options.batch)]
    if options.output:
      _write(options, groups, sampler, params, opened.tokenizer)
    else:
      _print(options, groups, sampler, params, opened.tokenizer)


def read_prompts(path: str) -> list[str]:
  """Returns the prompts of a file.

  Raises:
    UserError: the file cannot be read, is empty, or a JSON line has no `prompt`.
  """
  try:
    lines = epath.Path(path).read_text().splitlines()
  except (OSError, UnicodeDecodeError) as error:
    raise UserError(f"generate: cannot read {path}: {error}") from error
  prompts = []
  for number, line in enumerate(lines, 1):
    if line.startswith("{"):
      try:
        prompts.append(json.loads(line)["prompt"])
      except (json.JSONDecodeError, KeyError) as error:
        raise UserError(f"generate: {path}:{number}: is no JSON object with a 'prompt'") from error
    elif line.strip():
      prompts.append(line)
  if not prompts:
    raise UserError(f"generate: {path} has no prompts")
  return prompts


def _run(options, group, sampler, params, tokenizer, every):
  prompts = [prompt for prompt, _ in group]
  seeds = [options.seed + sample for _, sample in group]
  return continue_texts(sampler, params, tokenizer, prompts, options.max_new_tokens, seeds, options.stop, every)


def _searched(options, group, beam: Beam, params, tokenizer) -> list[str]:
  """Returns the text of each (prompt, number among its best) of a group."""
  prompts = list(dict.fromkeys(prompt for prompt, _ in group))
  found = dict(zip(prompts, beam_texts(beam, params, tokenizer, prompts, options.max_new_tokens), strict=True))
  return [found[prompt][sample] for prompt, sample in group]


def _print(options, groups, sampler, params, tokenizer) -> None:
  """Streams a single continuation token by token, and several one after the other."""
  alone = len(groups) == 1 and len(groups[0]) == 1
  for group in groups:
    if options.beams:
      for (prompt, sample), text in zip(group, _searched(options, group, sampler, params, tokenizer), strict=True):
        print(f"--- best {sample}\n{prompt}\n{text}")
      continue
    texts = ["" for _ in group]
    if alone:
      sys.stdout.write(group[0][0])
    for pieces in _run(options, group, sampler, params, tokenizer, 1 if alone else 16):
      texts = [text + piece for text, piece in zip(texts, pieces, strict=True)]
      if alone:
        sys.stdout.write(pieces[0])
        sys.stdout.flush()
    if not alone:
      for (prompt, sample), text in zip(group, texts, strict=True):
        print(f"--- sample {sample}\n{prompt}{text}")
  if alone:
    print()


def _write(options, groups, sampler, params, tokenizer) -> None:
  with epath.Path(os.devnull if jax.process_index() else options.output).open("w") as file:
    for group in groups:
      if options.beams:
        texts = _searched(options, group, sampler, params, tokenizer)
      else:
        texts = ["" for _ in group]
        for pieces in _run(options, group, sampler, params, tokenizer, 16):
          texts = [text + piece for text, piece in zip(texts, pieces, strict=True)]
      for (prompt, sample), text in zip(group, texts, strict=True):
        file.write(json.dumps({"prompt": prompt, "sample": sample, "text": text}, ensure_ascii=False) + "\n")
