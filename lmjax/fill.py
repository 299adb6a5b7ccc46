"""Find the words behind [MASK].

lmjax fill --workdir runs/bert "Jim made [MASK] for his girlfriend and [MASK] was very proud!"
"""

import argparse

import jax
import jax.numpy as jnp
import numpy as np
from rich.table import Table

from lmjax import config as configs
from lmjax.data.tokenizers import WordPiece
from lmjax.logs import console
from lmjax.opening import open_model
from lmjax.parallel.sharding import use_layout
from lmjax.tasks.masked_lm import MaskedLM
from lmjax.utils.errors import UserError

MASK = "[MASK]"


def main(arguments: list[str]) -> int:
  """Runs `lmjax fill`."""
  parser = argparse.ArgumentParser(
    prog="lmjax fill", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
  )
  parser.add_argument("text", nargs="+", help=f"a text with {MASK} in it; may be several")
  parser.add_argument("--workdir", required=True, help="the run folder")
  parser.add_argument("--step", type=int, help="the checkpoint, by its step; default the newest")
  parser.add_argument("--top", type=int, default=5, help="candidates of each place")
  options = configs.parse(parser, arguments)
  opened = open_model(options.workdir, options.step)
  task, tokenizer = opened.task, opened.tokenizer
  if not isinstance(task, MaskedLM):
    raise UserError(f"fill: {options.workdir} has no masked-LM head: its task is {type(task).__name__}")
  if getattr(tokenizer, "mask", None) is None:
    raise UserError(f"fill: the tokenizer of {options.workdir} has no token that masks")
  if not 1 <= options.top <= tokenizer.size:
    raise UserError(f"fill: --top is from 1 to {tokenizer.size}, not {options.top}")
  with use_layout(opened.layout):
    for text in options.text:
      _print(text, *candidates(task, tokenizer, opened.params, text, opened.length, options.top))
  return 0


def candidates(
  task: MaskedLM, tokenizer: WordPiece, params, text: str, length: int, top: int
) -> tuple[list[list[tuple[str, float]]], str]:
  """Returns for each [MASK] the likeliest pieces and their probabilities, and the text with the first of each.

  Every place is filled as if the others stayed masked.

  Raises:
    UserError: the text has no [MASK], or is too long.
  """
  ids = [tokenizer.start]
  for i, part in enumerate(text.split(MASK)):
    ids += [*([tokenizer.mask] if i else []), *tokenizer.encode(part)]
  ids.append(tokenizer.end)
  places = [i for i, token in enumerate(ids) if token == tokenizer.mask]
  if not places:
    raise UserError(f"fill: {text!r} has no {MASK}")
  if len(ids) > length:
    raise UserError(f"fill: the text has {len(ids)} tokens, the model takes {length}")
  inputs = jnp.asarray([ids])
  batch = {"inputs": inputs, "types": jnp.zeros_like(inputs), "segments": jnp.ones_like(inputs)}
  batch["positions"] = jnp.arange(len(ids))[None]
  scores = jax.jit(lambda params, batch: task.forward(params, batch).logits[0])(params, batch)
  odds, words = jax.lax.top_k(jax.nn.softmax(scores[np.array(places)], axis=-1), top)
  found = [
    [(tokenizer.piece(int(w)), float(p)) for p, w in zip(ps, ws, strict=True)]
    for ps, ws in zip(np.asarray(odds), np.asarray(words), strict=True)
  ]
  for place, row in zip(places, np.asarray(words), strict=True):
    ids[place] = int(row[0])
  return found, tokenizer.decode(ids)


def _print(text: str, found: list[list[tuple[str, float]]], filled: str) -> None:
  table = Table(title=text, title_justify="left")
  for number in range(len(found)):
    table.add_column(f"{MASK} {number + 1}")
    table.add_column("p", justify="right")
  for rank in range(len(found[0])):
    table.add_row(*[cell for place in found for cell in (place[rank][0], f"{place[rank][1]:.3f}")])
  console.print(table, markup=False)
  console.print(filled, markup=False)
