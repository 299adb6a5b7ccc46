"""Whole words as ids."""

import collections
import dataclasses
import functools
import json
import re
from collections.abc import Iterable, Sequence

from etils import epath

from lmjax.data.tokenizers import registry
from lmjax.data.tokenizers.base import write_file
from lmjax.utils import files, names
from lmjax.utils.errors import UserError
from lmjax.utils.fields import Fields

PATTERNS = {"words": r"\w+(?:['’]\w+)?|[^\w\s]", "spaces": r"\S+|\n"}
SPECIAL = ("<S>", "</S>", "<unk>")
IDS = (("start", 0), ("end", 1), ("unknown", 2))  # of words.json, with their defaults


@dataclasses.dataclass(frozen=True)
class WordTokenizerConfig(registry.TokenizerConfig):
  """A tokenizer of the `size` most frequent words of the training text, or the one at `path`.

  split_by: `words` treats punctuation marks as words; `spaces` is for tokenized text with one sentence per line, and
  encodes the end of a line as the end token.
  """

  split_by: str = "words"

  def __post_init__(self):
    if self.split_by not in PATTERNS:
      raise ValueError(f"split_by must be one of {', '.join(PATTERNS)}, not {self.split_by!r}")

  def make(self, texts: Iterable[str]) -> registry.Tokenizer:
    return registry.load(self.path) if self.path else train(texts, self.size, self.split_by)


@dataclasses.dataclass(frozen=True)
class Words:
  """`<S>` (start), `</S>` (end), `<unk>` (other words), then words by frequency; decoding joins words with spaces."""

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
    """Returns the words of a string, in the vocabulary or not."""
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
    write_file(folder, "words.json", json.dumps(dataclasses.asdict(self)))
    write_file(folder, "kind.json", json.dumps({"kind": "lmjax.data.tokenizers.words:Words"}))

  @classmethod
  def load(cls, folder: epath.Path) -> "Words":
    file = folder / "words.json"
    values = files.read_json(file)
    if "split_by" not in values:  # format 1
      values = names.load("lmjax.utils.renames:section")(values, "data.tokenizer")
    fields = Fields(values, file)
    words, split_by = fields.sequence("vocabulary", str), fields.text("split_by", "words", tuple(PATTERNS))
    ids = [fields.integer(key, default, most=len(words) - 1) for key, default in IDS]
    if max(ids) >= len(words):  # a default
      raise UserError(f"{file}: vocabulary has {len(words):,} words, and start, end and unknown are among them")
    return cls(tuple(words), split_by, *ids)


def train(texts: Iterable[str], size: int, split_by: str = "words") -> Words:
  """Returns the tokenizer of the most frequent words of some texts, `size` ids with the special tokens."""
  counts, splitter = collections.Counter(), Words(SPECIAL, split_by)
  for text in texts:
    counts.update(splitter.words(text))
  frequent = [word for word, _ in counts.most_common() if word not in (*SPECIAL, "\n")]
  return Words((*SPECIAL, *frequent[: size - len(SPECIAL)]), split_by)
