"""The words behind [MASK], by a masked LM."""

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
  """Returns for each [MASK] the likeliest pieces and their attention_weights, and the text with the first of each.

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
  batch = {"inputs": inputs, "token_types": jnp.zeros_like(inputs), "segments": jnp.ones_like(inputs)}
  batch["positions"] = jnp.arange(len(ids))[None]
  scores = jax.jit(lambda params, batch: task.forward(params, batch).logits[0])(params, batch)
  probs, words = jax.lax.top_k(jax.nn.softmax(scores[np.array(places)], axis=-1), top)
  found = [
    [(tokenizer.token(int(w)), float(p)) for p, w in zip(ps, ws, strict=True)]
    for ps, ws in zip(np.asarray(probs), np.asarray(words), strict=True)
  ]
  for place, row in zip(places, np.asarray(words), strict=True):
    ids[place] = int(row[0])
  return found, tokenizer.decode(ids)
