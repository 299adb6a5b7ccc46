"""Which windows of generated text occur verbatim in a corpus (Carlini et al., 2023, arXiv:2202.07646)."""

import functools
import hashlib
import random
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from etils import epath

from lmjax.data.sources.base import BadRecord, Source
from lmjax.data.sources.paths import read_bytes
from lmjax.data.tokenizers.base import Tokenizer
from lmjax.evals import corpus_sources
from lmjax.evals.bootstrap import interval
from lmjax.evals.corpus import Block
from lmjax.utils import files
from lmjax.utils.errors import UserError

WINDOW = 50  # tokens
ANCHORS = (64, 32, 16)  # bytes at the beginning of a string that select candidates: the most that all strings have
FACTOR = np.uint64(0x9E3779B97F4A7C15)  # odd, of the rolling hash
BITS = 24  # of the table that rules out most places
LINES = bytes.maketrans(b"\t\n\r", b"   ")  # where a corpus breaks its lines does not count
PROMPT, REST = 200, 400  # characters of a prompt, and of what follows it in the corpus


def windows(tokenizer: Tokenizer, text: str, size: int = WINDOW) -> list[bytes]:
  """Returns the text of every window of `size` tokens of a string, as UTF-8.

  A character that a window cuts is left out, as is a window that has fewer than 16 bytes then.
  """
  ids = [int(i) for i in tokenizer.encode(text)]
  texts = [tokenizer.decode(ids[at : at + size]).strip("\ufffd").encode() for at in range(len(ids) - size + 1)]
  return [window.translate(LINES) for window in texts if len(window) >= ANCHORS[-1]]


def share(answers: Sequence[Sequence[bytes]], counts: dict[bytes, int]) -> dict[str, Any]:
  """Returns the share of the windows of all answers that occur in a corpus, with its interval over answers.

  answers: the windows of each. counts: of the windows that occur.
  """
  pairs = np.array([[sum(w in counts for w in windows), len(windows)] for windows in answers], np.float64)
  total = int(pairs[:, 1].sum())
  report: dict[str, Any] = {"tokens": WINDOW, "answers": len(answers), "windows": total}
  if not total:
    return report
  statistic = lambda rows: float(rows[:, 0].sum() / max(rows[:, 1].sum(), 1.0))  # noqa: E731
  low, high = interval(pairs, statistic)
  return report | {"value": statistic(pairs), "low": low, "high": high}


def prompts(corpus: Sequence[str | Source], count: int, seed: int = 0) -> list[dict[str, Any]]:
  """Returns documents with a `prompt` of about 200 characters from random places of a corpus, and its `continuation`.

  Raises:
    UserError: a file cannot be read, or the corpus is too short.
  """
  rng, docs, opened = random.Random(seed), [], corpus_sources.open_corpus(corpus)
  sizes = [e.stat().length if isinstance(e, epath.Path) else len(e) * corpus_sources.mean_size(e) for e in opened]
  for _ in range(20 * count if any(sizes) else 0):
    words = _anywhere(rng.choices(opened, sizes)[0], rng).split(" ")[1:-1]  # whole ones
    text = " ".join(words)
    cut = text.find(" ", PROMPT)
    if cut > 0 and len(text) > cut + PROMPT:
      docs.append({"prompt": text[:cut], "continuation": text[cut : cut + REST]})
    if len(docs) == count:
      return docs
  raise UserError(
    f"evaluate: the corpus, or each of its documents, is too short for {count} prompts of {PROMPT} characters, "
    "with as many after them"
  )


def _anywhere(corpus: epath.Path | Source, rng: random.Random) -> str:
  """Returns some text from a random place."""
  if not isinstance(corpus, epath.Path):
    text = corpus_sources.document_at(corpus, rng.randrange(len(corpus)))
    return "" if isinstance(text, BadRecord) else text[rng.randrange(max(len(text) - PROMPT - REST, 1)) :]
  data = read_bytes(corpus)
  at = rng.randrange(max(len(data) - 4 * (PROMPT + REST), 1))
  if not corpus_sources.is_json(corpus):
    return bytes(data[at : at + 4 * (PROMPT + REST)]).decode("utf-8", "replace")
  first = data.rfind(b"\n", 0, at) + 1
  end = data.find(b"\n", at)
  text = str(files.parse_json(bytes(data[first : end if end >= 0 else len(data)])).get("text", ""))
  return text[rng.randrange(max(len(text) - PROMPT - REST, 1)) :]


class Substrings:
  """Counts byte strings in a corpus, by a rolling hash of their first bytes; candidates are compared whole.

  The ends of lines are spaces, in both.

  strings: of at least 16 bytes each.
  """

  def __init__(self, strings: Sequence[bytes]):
    self.strings = list(dict.fromkeys(text.translate(LINES) for text in strings))
    self.beyond = max(map(len, self.strings), default=1)
    shortest = min(map(len, self.strings), default=ANCHORS[0])
    if shortest < ANCHORS[-1]:
      raise ValueError(f"a string has {shortest} bytes, but {ANCHORS[-1]} are needed")
    self.anchor = next(size for size in ANCHORS if size <= shortest)

  def key(self) -> str:
    """Returns a hash of all that is searched."""
    return hashlib.sha256(b"\0".join(self.strings)).hexdigest()[:16]

  def __getstate__(self) -> dict[str, Any]:
    return {"strings": self.strings, "beyond": self.beyond, "anchor": self.anchor}

  @functools.cached_property
  def _tables(self) -> tuple[np.ndarray, dict[bytes, list[int]]]:
    """Returns a bit for the first bits of each anchor's hash, and the strings of each anchor."""
    by_anchor: dict[bytes, list[int]] = {}
    for number, text in enumerate(self.strings):
      by_anchor.setdefault(text[: self.anchor], []).append(number)
    bits = np.zeros(1 << BITS, bool)
    for anchor in by_anchor:
      bits[self._hash(anchor)] = True
    return bits, by_anchor

  def _hash(self, data: bytes) -> np.ndarray:
    """Returns the first bits of the hash of the anchor that begins at each place."""
    total, size, factor = np.frombuffer(data, np.uint8).astype(np.uint64), 1, int(FACTOR)
    while size < self.anchor:  # of twice as many bytes at each step
      total = total[:-size] * np.uint64(factor) + total[size:]
      factor, size = factor * factor % 2**64, 2 * size
    return (total * FACTOR) >> np.uint64(64 - BITS)

  def count(self, blocks: Iterator[Block]) -> dict[int, int]:
    """Returns how often each string begins in the blocks, by its number; those that do."""
    bits, by_anchor = self._tables
    counts: dict[int, int] = {}
    for block in blocks:
      data = block.data.translate(LINES)
      if len(data) < self.anchor:
        continue
      for at in np.flatnonzero(bits[self._hash(data)[: block.own]]):
        for number in by_anchor.get(data[at : at + self.anchor], ()):
          if data.startswith(self.strings[number], at):
            counts[number] = counts.get(number, 0) + 1
    return counts
