"""Predictions of a masked language model for the masked tokens of a sentence."""

import jax
import jax.numpy as jnp
import numpy as np

from lmjax.data.tokenizers.bpe import BPE
from lmjax.data.tokenizers.special import template_of
from lmjax.data.tokenizers.subword import WordPiece
from lmjax.tasks.masked_lm import MaskedLM
from lmjax.utils.errors import UserError
from lmjax.utils.pytree import Tree

MASK = "[MASK]"


def candidates(
  task: MaskedLM, tokenizer: BPE, params: Tree, text: str, length: int, top: int
) -> tuple[list[list[tuple[str, float]]], str]:
  """Returns the most probable tokens for each mask with their probabilities, and the text with the best filled in.

  The mask is [MASK], or what the tokenizer has in its place, such as <mask>; either is read as such, and so are other
  special tokens. Each mask is predicted while the others stay masked.

  Args:
    length: maximum tokens of the model.
    top: number of tokens for each mask.

  Raises:
    UserError: the text has no mask, or is longer than `length` tokens.
  """
  mask = mask_token(tokenizer)
  written = text if mask in text else text.replace(MASK, mask)
  ids = template_of(tokenizer, task.model.kind).apply(tokenizer.encode(written, parse_special=True)).ids
  masked = [i for i, token in enumerate(ids) if token == tokenizer.mask]
  if not masked:
    names = " or ".join(dict.fromkeys((mask, MASK)))
    raise UserError(f"fill: {text!r} has no {names}; write it where a word is to be predicted")
  if len(ids) > length:
    raise UserError(f"fill: the text has {len(ids)} tokens, but the model takes at most {length}; shorten it")
  inputs = jnp.asarray([ids])
  batch = {"inputs": inputs, "token_types": jnp.zeros_like(inputs), "segments": jnp.ones_like(inputs)}
  batch["positions"] = jnp.arange(len(ids))[None]
  logits = jax.jit(lambda params, batch: task.forward(params, batch).logits[0])(params, batch)
  probs, tokens = map(np.asarray, jax.lax.top_k(jax.nn.softmax(logits[np.array(masked)], axis=-1), top))
  predictions = [
    [(_show(tokenizer, int(token)), float(p)) for p, token in zip(*row, strict=True)]
    for row in zip(probs, tokens, strict=True)
  ]
  for position, row in zip(masked, tokens, strict=True):
    ids[position] = int(row[0])
  return predictions, tokenizer.decode(ids)


def mask_token(tokenizer: BPE) -> str:
  """Returns how the tokenizer's mask is written."""
  return tokenizer.fast.id_to_token(tokenizer.mask) or MASK


def _show(tokenizer: BPE, number: int) -> str:
  """Returns a token as WordPiece's vocabulary has it, where `##` continues a word, else its text."""
  if isinstance(tokenizer, WordPiece):
    return tokenizer.token(number)
  return tokenizer.fast.decode([number], skip_special_tokens=False).strip()
