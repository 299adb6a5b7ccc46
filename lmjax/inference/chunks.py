"""Documents as chunks of a few paragraphs, which a model can embed."""

import re
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

from lmjax.data.tokenizers.base import Tokenizer
from lmjax.data.tokenizers.words import Words

PARAGRAPHS = re.compile(r"\n[ \t\r]*\n")
SENTENCES = re.compile(r"(?<=[.!?。])\s+|(?<=[.!?。][\"'”’)\]])\s+")
WORDS = re.compile(r"\s+")
CHARACTERS = re.compile(r"")
SEPARATORS = (PARAGRAPHS, SENTENCES, WORDS, CHARACTERS)
Count = Callable[[Sequence[str]], list[int]]


class Chunk(NamedTuple):
  """A part of a document: its file, its first line from 1, its characters from `start` to before `end`, its text."""

  file: str
  line: int
  start: int
  end: int
  text: str


def counter(tokenizer: Tokenizer) -> Count:
  """Returns a function that counts the tokens of each of several strings (words, for a tokenizer of words)."""
  if isinstance(tokenizer, Words):
    return lambda texts: [len(tokenizer.words(text)) for text in texts]
  return lambda texts: [len(ids) for ids in tokenizer.encode_many(texts)]


def split(text: str, count: Count, most: int) -> Iterator[tuple[int, int]]:
  """Yields the spans of characters of chunks, in order; the space between them is in none.

  A chunk is one paragraph or several that follow each other, with `most` tokens together. A paragraph that is longer
  by itself is cut between sentences, a longer sentence between words, and a longer word between characters.
  """
  start = end = total = 0
  for begin, stop, tokens, whole in _units(text, (0, len(text)), SEPARATORS, count, most):
    if total and (total + tokens > most or not whole):
      yield start, end
      total = 0
    if not total:
      start = begin
    end, total = stop, total + tokens
    if not whole:  # parts of a long paragraph are packed by themselves
      yield start, end
      total = 0
  if total:
    yield start, end


def _units(
  text: str, span: tuple[int, int], patterns: Sequence[re.Pattern], count: Count, most: int
) -> Iterator[tuple[int, int, int, bool]]:
  """Yields (start, end, tokens, whole) of parts of at most `most` tokens; not whole: a part of a larger unit."""
  separator, *finer = patterns
  spans = list(_spans(text, span, separator))
  counts = count([text[begin:stop] for begin, stop in spans])
  for (begin, stop), tokens in zip(spans, counts, strict=True):
    if tokens <= most or not finer:
      yield begin, stop, max(tokens, 1), True
      continue
    first = last = total = 0
    for inner, after, number, _ in _units(text, (begin, stop), finer, count, most):
      if total and total + number > most:
        yield first, last, total, False
        total = 0
      first = first if total else inner
      last, total = after, total + number
    if total:
      yield first, last, total, False


def _spans(text: str, span: tuple[int, int], separator: re.Pattern) -> Iterator[tuple[int, int]]:
  """Yields the spans between separators, without the space around them; empty ones are left out."""
  begin, stop = span
  for after in (*(match.span() for match in separator.finditer(text, begin, stop)), (stop, stop)):
    part = text[begin : after[0]]
    if kept := part.strip():
      start = begin + part.index(kept[0])
      yield start, start + len(kept)
    begin = after[1]


def chunks_of(file: str, text: str, count: Count, most: int) -> Iterator[Chunk]:
  """Yields the chunks of a document of at most `most` tokens."""
  line, seen = 1, 0
  for start, end in split(text, count, most):
    line, seen = line + text.count("\n", seen, start), start
    yield Chunk(file, line, start, end, text[start:end])
