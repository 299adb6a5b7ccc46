"""Special tokens: which ids start and end a string, and what surrounds text as a model's input."""

import dataclasses
import inspect
from collections.abc import Sequence
from typing import Any

from lmjax.data.tokenizers.base import Tokenizer, ends_of
from lmjax.utils.errors import UserError

A, B = -1, -2  # the places of the first and of the second text in a template
Pieces = tuple[tuple[int, int], ...]  # (id, A or B; token type)


@dataclasses.dataclass(frozen=True)
class Input:
  """A string, or a pair of texts, as the input of a model; content: the tokens of the first text."""

  ids: list[int]
  token_types: list[int]
  content: slice


@dataclasses.dataclass(frozen=True)
class Template:
  """What surrounds a string, and a pair of texts."""

  single: Pieces
  pair: Pieces

  def added(self, pair: bool = False) -> int:
    """Returns the number of special tokens."""
    return sum(piece >= 0 for piece, _ in (self.pair if pair else self.single))

  def apply(self, first: Sequence[int], second: Sequence[int] | None = None) -> Input:
    """Returns the ids of one text, or of two, with special tokens around them."""
    ids: list[int] = []
    token_types: list[int] = []
    content = slice(0, 0)
    for piece, token_type in self.single if second is None else self.pair:
      part = [int(i) for i in first] if piece == A else [int(i) for i in second or ()] if piece == B else [piece]
      if piece == A:
        content = slice(len(ids), len(ids) + len(part))
      ids += part
      token_types += [token_type] * len(part)
    return Input(ids, token_types, content)


def template(before: Sequence[int], between: Sequence[int], after: Sequence[int], second: int = 0) -> Template:
  """Returns the template `before` A `after`, and for pairs `before` A `between` B `after`.

  Args:
    second: the token type of the second text and of what follows it.
  """
  start, middle, end = (tuple((i, 0) for i in ids) for ids in (before, between, after))
  return Template((*start, (A, 0), *end), (*start, (A, 0), *middle, (B, second), *((i, second) for i in after)))


def prefix(before: Sequence[int]) -> Template:
  """Returns the template of what comes before a string alone; of a pair, before the first."""
  return template(before, [], [])


def read_processor(processor: dict[str, Any]) -> Template | None:
  """Returns the template of a tokenizer.json's post-processor; None for one that adds no special tokens.

  Raises:
    UserError: the kind of post-processor is not known.
  """
  kind = processor["type"]
  if kind == "Sequence":
    adding = [own for own in map(read_processor, processor["processors"]) if own]
    if len(adding) > 1:
      raise UserError("tokenizer.json: several post-processors that add special tokens are not supported")
    return adding[0] if adding else None
  if kind == "ByteLevel":
    return None
  if kind in ("BertProcessing", "RobertaProcessing"):
    start, end = processor["cls"][1], processor["sep"][1]
    return template([start], [end] if kind[0] == "B" else [end, end], [end], second=int(kind[0] == "B"))
  if kind != "TemplateProcessing":
    raise UserError(f"tokenizer.json: the post-processor {kind!r} is not supported")

  def pieces(items: list[dict[str, Any]]) -> Pieces:
    out: list[tuple[int, int]] = []
    for item in items:
      (name, piece), *_ = item.items()
      ids = [A if piece["id"] == "A" else B] if name == "Sequence" else processor["special_tokens"][piece["id"]]["ids"]
      out += [(int(i), int(piece["type_id"])) for i in ids]
    return tuple(out)

  return Template(pieces(processor["single"]), pieces(processor["pair"]))


def template_of(tokenizer: Tokenizer, kind: str) -> Template:
  """Returns what surrounds a string: what the tokenizer's folder says, or what a model of a kind is trained on here.

  A decoder reads the start, an encoder [CLS] and [SEP] around each text, an encoder-decoder an end after its source.
  """
  own: Template | None = getattr(tokenizer, "template", None)
  if own is not None:
    return own
  start = [] if tokenizer.start is None else [tokenizer.start]
  end = list(ends_of(tokenizer)[:1])
  if kind == "encoder_decoder":
    return template([], end, end)
  if kind == "encoder":
    return template(start, end, end, second=1)
  return dataclasses.replace(template(start, end, end, second=1), single=prefix(start).single)


def encode(tokenizer: Tokenizer, text: str, parse_special: bool) -> list[int]:
  """Returns the ids of a string; special tokens in it are text, unless they are parsed.

  Raises:
    UserError: they cannot be parsed, as the kind of tokenizer has no special tokens in texts.
  """
  if not parse_special:
    return list(tokenizer.encode(text))
  if "parse_special" not in inspect.signature(tokenizer.encode).parameters:
    raise UserError(f"{type(tokenizer).__name__} tokenizers have no special tokens that a string can contain")
  return list(tokenizer.encode(text, parse_special=True))  # type: ignore[call-arg]
