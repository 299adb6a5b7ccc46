"""Which items of a suite occur in a training corpus, by overlapping word N-grams (Brown et al., 2020, appendix C)."""

import dataclasses
import functools
import hashlib
import re
import string
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from lmjax.evals.corpus import SPACE, Block
from lmjax.evals.corpus_sources import strings
from lmjax.evals.suites.items import Item, Renderer
from lmjax.evals.suites.task_files import TaskFile

SHORTEST, LONGEST = 8, 13  # words of an N-gram
PERCENTILE = 5  # of the words of a task's items, which is N
FREQUENT = 10  # an N-gram that occurs more often says nothing about an item
BEYOND = 8192  # bytes of an N-gram with all that is between its words, at most
PUNCTUATION = string.punctuation.encode()
# Punctuation outside of ASCII as UTF-8: U+00A1 to U+00BF, U+2010 to U+205E, U+3001 to U+3011; then spaces.
OTHER = re.compile(rb"\xc2[\xa1-\xbf]|\xe2\x80[\x90-\xa7\xb0-\xbf]|\xe2\x81[\x80-\x9e]|\xe3\x80[\x81-\x91]")
SPACES = re.compile(rb"\xc2\xa0|\xe2\x80[\x80-\x8b\xa8-\xaf]|\xe3\x80\x80")
FACTOR = np.uint64(0x9E3779B97F4A7C15)  # odd, of the rolling hash
BITS = 24  # of the table that rules out most N-grams


def words(data: bytes) -> list[bytes]:
  """Returns the words of UTF-8 text between white space, in lower case and without punctuation."""
  if not data.isascii():
    data = data.decode("utf-8", "replace").lower().encode()
    data = OTHER.sub(b"", SPACES.sub(b" ", data))
  return data.translate(None, PUNCTUATION).lower().split()


def choose_size(lengths: Sequence[int]) -> int:
  """Returns N: the 5th percentile of the items' numbers of words, from 8 to 13."""
  return int(np.clip(int(np.percentile(lengths, PERCENTILE)), SHORTEST, LONGEST))


def text_of(task: TaskFile, item: Item) -> str:
  """Returns the text of an item: its context and the right answer, or what `doc_to_decontamination_query` makes."""
  if task.doc_to_decontamination_query:
    return Renderer(task).render("doc_to_decontamination_query", item.doc)
  if task.output_type == "generate_until":
    return f"{item.contexts[0]}{task.target_delimiter}{item.target[0]}"
  right = item.target[0] if task.output_type == "multiple_choice" else 0
  return item.contexts[right] + item.continuations[right]


def _plain_texts(task: TaskFile, item: Item) -> list[str]:
  """Returns an item's texts without the words of a template: all its strings, and each before the right answer."""
  if task.doc_to_decontamination_query:
    return []
  texts, right = list(strings(item.doc)), item.target[0]
  answer = item.choices[right] if task.output_type == "multiple_choice" else str(right)
  return [" ".join(texts), *(f"{text} {answer}" for text in texts)]


@dataclasses.dataclass(frozen=True)
class Overlap:
  """What is searched of a task: N, and for each item the N-grams of its texts, by their numbers.

  An item whose texts are all shorter than N words has none and is not checked.
  """

  size: int
  grams: tuple[tuple[int, ...], ...]

  def matches(self, counts: Mapping[int, int]) -> list[list[int]]:
    """Returns the N-grams of each item that occur in the corpus, but not more than 10 times."""
    return [[gram for gram in own if 0 < counts.get(gram, 0) <= FREQUENT] for own in self.grams]


class NGrams:
  """Counts word N-grams in a corpus: a rolling hash of words' hashes selects candidates, whose words are compared."""

  beyond = BEYOND

  def __init__(self) -> None:
    self.numbers: dict[bytes, int] = {}  # of each N-gram, its words joined by spaces

  def add(self, task: TaskFile, items: Sequence[Item]) -> Overlap:
    """Adds the N-grams of a task's items, which have neither examples before them nor words of the template."""
    texts = [words(text_of(task, item).encode("utf-8", "replace")) for item in items]
    size = choose_size([len(text) for text in texts])
    grams = []
    for item, text in zip(items, texts, strict=True):
      own = {}
      for part in (text, *(words(plain.encode("utf-8", "replace")) for plain in _plain_texts(task, item))):
        for at in range(len(part) - size + 1):
          own[self.numbers.setdefault(b" ".join(part[at : at + size]), len(self.numbers))] = True
      grams.append(tuple(own))
    return Overlap(size, tuple(grams))

  def key(self) -> str:
    """Returns a hash of all that is searched."""
    return hashlib.sha256(b"\n".join(self.numbers)).hexdigest()[:16]

  @functools.cached_property
  def _tables(self) -> dict[int, tuple[np.ndarray, np.ndarray]]:
    """Returns for each N a bit for the first bits of each hash, and the hashes, sorted."""
    by_size: dict[int, list[list[bytes]]] = {}
    for gram in self.numbers:
      parts = gram.split(b" ")
      by_size.setdefault(len(parts), []).append(parts)
    tables = {}
    for size, grams in sorted(by_size.items()):
      hashes = _hash_words([word for gram in grams for word in gram])
      sums = np.unique(_roll(hashes, size)[::size])
      bits = np.zeros(1 << BITS, bool)
      bits[sums >> np.uint64(64 - BITS)] = True
      tables[size] = bits, sums
    return tables

  def __getstate__(self) -> dict[str, Any]:  # hashes of strings differ from process to process
    return {"numbers": self.numbers}

  def count(self, blocks: Iterator[Block]) -> dict[int, int]:
    """Returns how often each N-gram begins in the blocks, by its number; those that do."""
    counts: dict[int, int] = {}
    most = max(self._tables, default=1) - 1
    for block in blocks:
      text, own = split_words(block, most)
      if not own:
        continue
      hashes = _hash_words(text)
      for size, (bits, sums) in self._tables.items():
        rolled = _roll(hashes, size)[:own]
        candidates = np.flatnonzero(bits[rolled >> np.uint64(64 - BITS)])
        places = np.searchsorted(sums, rolled[candidates])
        for at in candidates[sums[np.minimum(places, len(sums) - 1)] == rolled[candidates]]:
          number = self.numbers.get(b" ".join(text[at : at + size]))
          if number is not None:
            counts[number] = counts.get(number, 0) + 1
    return counts


def split_words(block: Block, most: int) -> tuple[list[bytes], int]:
  """Returns the words that begin in a block's own bytes and `most` words after them, and the number of the former."""
  data, first, own = block.data, 0, block.own
  if not block.fresh:  # the end of a word that began before
    first = next((i for i in range(own) if data[i] in SPACE), own)
  while 0 < own < len(data) and data[own - 1] not in SPACE and data[own] not in SPACE:
    own += 1  # a word that begins before the end is read to its end
  begun, rest = words(data[first:own]) if first < block.own else [], data[own:]
  if not block.last:  # its last word may be cut
    rest = rest[: max(rest.rfind(bytes([space])) for space in SPACE) + 1]
  after: list[bytes] = []
  size = 512
  while len(after) < most and begun:
    cut = rest[:size] if size < len(rest) else rest
    while len(cut) < len(rest) and rest[len(cut) - 1] not in SPACE:
      cut = rest[: len(cut) + 1]
    after = words(cut)
    if len(cut) == len(rest):
      break
    size *= 2
  return begun + after[:most], len(begun)


def _hash_words(text: Sequence[bytes]) -> np.ndarray:
  return np.fromiter(map(hash, text), np.int64, len(text)).view(np.uint64)


def _roll(hashes: np.ndarray, size: int) -> np.ndarray:
  """Returns the hash of the `size` words from each place on, mixed so that its first bits depend on all of them."""
  if len(hashes) < size:
    return np.zeros(0, np.uint64)
  count = len(hashes) - size + 1
  total = hashes[:count].copy()
  for i in range(1, size):
    total *= FACTOR
    total += hashes[i : i + count]
  total ^= total >> np.uint64(29)
  total *= FACTOR
  return total
