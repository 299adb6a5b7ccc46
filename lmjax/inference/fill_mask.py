"""Predictions of a masked language model for the [MASK] tokens of a sentence."""

import jax
import jax.numpy as jnp
import numpy as np

from lmjax.data.tokenizers.subword import WordPiece
from lmjax.tasks.masked_lm import MaskedLM
from lmjax.utils.errors import UserError
from lmjax.utils.pytree import Tree

MASK = "[MASK]"


def candidates(
  task: MaskedLM, tokenizer: WordPiece, params: Tree, text: str, length: int, top: int
) -> tuple[list[list[tuple[str, float]]], str]:
  """Returns the most probable tokens for each [MASK] with their probabilities, and the text with the best filled in.

  Each [MASK] is predicted while the others stay masked.

  Args:
    length: maximum tokens of the model.
    top: number of tokens for each [MASK].

  Raises:
    UserError: the text has no [MASK], or is longer than `length` tokens.
  """
  ids = [tokenizer.start]
  for i, part in enumerate(text.split(MASK)):
    ids += [*([tokenizer.mask] if i else []), *tokenizer.encode(part)]
  ids.append(tokenizer.end)
  masked = [i for i, token in enumerate(ids) if token == tokenizer.mask]
  if not masked:
    raise UserError(f"fill: {text!r} has no {MASK}; write it where a word is to be predicted")
  if len(ids) > length:
    raise UserError(f"fill: the text has {len(ids)} tokens, but the model takes at most {length}; shorten it")
  inputs = jnp.asarray([ids])
  batch = {"inputs": inputs, "token_types": jnp.zeros_like(inputs), "segments": jnp.ones_like(inputs)}
  batch["positions"] = jnp.arange(len(ids))[None]
  logits = jax.jit(lambda params, batch: task.forward(params, batch).logits[0])(params, batch)
  probs, tokens = map(np.asarray, jax.lax.top_k(jax.nn.softmax(logits[np.array(masked)], axis=-1), top))
  predictions = [
    [(tokenizer.token(int(token)), float(p)) for p, token in zip(*row, strict=True)]
    for row in zip(probs, tokens, strict=True)
  ]
  for position, row in zip(masked, tokens, strict=True):
    ids[position] = int(row[0])
  return predictions, tokenizer.decode(ids)
