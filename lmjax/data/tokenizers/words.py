"""Whole words as ids, and as the characters they are spelt with."""

import collections
import dataclasses
import functools
import json
import re
from collections.abc import Iterable, Sequence

import numpy as np
from etils import epath

from lmjax.data.tokenizers import registry

PATTERNS = {"words": r"\w+(?:['’]\w+)?|[^\w\s]", "spaces": r"\S+|\n"}
SPECIAL = ("<S>", "</S>", "<unk>")
# What a word is spelt with, beside the bytes of its UTF-8; 0 stands where there is no word, so all are one higher.
BOS_CHARACTER, EOS_CHARACTER, BOW_CHARACTER, EOW_CHARACTER, PAD_CHARACTER = range(257, 262)


@dataclasses.dataclass(frozen=True)
class WordTokenizerConfig(registry.TokenizerConfig):
  """A tokenizer of the `size` commonest words of the training text, or the one at `path`.

  split_by: `words` takes punctuation marks for words of their own; `spaces` is for text already cut, whose lines are
  sentences: the end of a line is the end token.
  """

  split_by: str = "words"

  def __post_init__(self):
    if self.split_by not in PATTERNS:
      raise ValueError(f"split_by is one of {', '.join(PATTERNS)}, not {self.split_by!r}")

  def make(self, texts: Iterable[str]) -> registry.Tokenizer:
    return registry.load(self.path) if self.path else train(texts, self.size, self.split_by)


@dataclasses.dataclass(frozen=True)
class Words:
  """Words by frequency, behind `<S>` (start), `</S>` (end), `<unk>` (any other word); decoding puts spaces between."""

  vocabulary: tuple[str, ...]
  split_by: str = "words"
  start: int = 0
  end: int = 1
  unknown: int = 2

  @property
  def size(self) -> int:
    return len(self.vocabulary)

  @functools.cached_property
  def _ids(self) -> dict[str, int]:
    return {word: i for i, word in enumerate(self.vocabulary)} | {"\n": self.end}

  def words(self, text: str) -> list[str]:
    """Returns the words of a text, known and unknown."""
    return re.findall(PATTERNS[self.split_by], text)

  def ids(self, words: Iterable[str]) -> list[int]:
    """Returns the ids of words."""
    return [self._ids.get(word, self.unknown) for word in words]

  def encode(self, text: str) -> list[int]:
    return self.ids(self.words(text))

  def encode_many(self, texts: Sequence[str]) -> list[Sequence[int]]:
    return [self.encode(text) for text in texts]

  def decode(self, ids: Iterable[int]) -> str:
    return " ".join(self.vocabulary[i] for i in ids if i < self.size and i not in (self.start, self.end))

  def save(self, folder: epath.PathLike) -> None:
    folder = epath.Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "kind.json").write_text(json.dumps({"kind": "lmjax.data.tokenizers.words:Words"}))
    (folder / "words.json").write_text(json.dumps(dataclasses.asdict(self)))

  @classmethod
  def load(cls, folder: epath.Path) -> "Words":
    saved = json.loads((folder / "words.json").read_text())
    return cls(tuple(saved.pop("vocabulary")), **saved)


def train(texts: Iterable[str], size: int, split_by: str = "words") -> Words:
  """Returns the tokenizer of the commonest words of some texts."""
  counts, cut = collections.Counter(), Words(SPECIAL, split_by)
  for text in texts:
    counts.update(cut.words(text))
  known = [word for word, _ in counts.most_common() if word not in (*SPECIAL, "\n")]
  return Words((*SPECIAL, *known[: size - len(SPECIAL)]), split_by)


def spell(word: str, characters: int = 50) -> np.ndarray:
  """Returns the characters of a word, int32 [C]: its bytes between a start and an end, then padding; cut to fit.

  The start and the end token, `<S>` and `</S>`, are a single character of their own (bilm-tf's).
  """
  special = {SPECIAL[0]: [BOS_CHARACTER], SPECIAL[1]: [EOS_CHARACTER], "\n": [EOS_CHARACTER]}
  inside = special.get(word) or [byte + 1 for byte in word.encode("utf-8")[: characters - 2]]
  spelt = np.full(characters, PAD_CHARACTER, np.int32)
  spelt[: len(inside) + 2] = [BOW_CHARACTER, *inside, EOW_CHARACTER]
  return spelt
