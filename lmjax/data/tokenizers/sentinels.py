"""A tokenizer with T5's sentinels, `<extra_id_0>` and so on, numbered downwards from the last id."""

import dataclasses
import json
import re
from collections.abc import Iterable, Sequence

import numpy as np
from etils import epath

from lmjax.data.tokenizers import registry
from lmjax.data.tokenizers.base import Tokenizer, write_file
from lmjax.utils.fields import Fields
from lmjax.utils.files import read_json

MOST = 2**20  # sentinels


@dataclasses.dataclass(frozen=True)
class SentinelTokenizerConfig(registry.TokenizerConfig):
  """A TokenizerConfig with `sentinels` additional ids after the tokenizer's own, which replace noise spans."""

  sentinels: int = 100

  def make(self, texts: Iterable[str]) -> Tokenizer:
    tokenizer = super().make(texts)
    return tokenizer if isinstance(tokenizer, Sentinels) else Sentinels(tokenizer, self.sentinels)

  def expected(self, size: int | None = None) -> Tokenizer:
    tokenizer = super().expected(size)
    return tokenizer if isinstance(tokenizer, Sentinels) or size else Sentinels(tokenizer, self.sentinels)


@dataclasses.dataclass(frozen=True)
class Sentinels:
  """A tokenizer with sentinels: id `size - 1` is `<extra_id_0>`, `size - 2` is `<extra_id_1>`, and so on."""

  inner: Tokenizer
  sentinels: int = 100

  @property
  def size(self) -> int:
    return self.inner.size + self.sentinels

  @property
  def start(self) -> int:
    return self.inner.start

  @property
  def end(self) -> int:
    return self.inner.end

  def sentinel(self, number: int) -> int:
    """Returns the id of `<extra_id_number>`."""
    return self.size - 1 - number

  def encode(self, text: str, parse_special: bool = False) -> list[int]:
    """Returns the ids of a string; `<extra_id_N>` in it is text, unless it is parsed."""
    if not parse_special:
      return self.inner.encode(text)
    parts = re.split(r" ?<extra_id_(\d+)>", text)  # the numbers are at odd places
    numbers = [int(number) for number in parts[1::2]]
    if any(number >= self.sentinels for number in numbers):
      return self.inner.encode(text)
    ids = [list(self.inner.encode(part)) if part else [] for part in parts[::2]]
    return [*ids[0], *(i for n, after in zip(numbers, ids[1:], strict=True) for i in (self.sentinel(n), *after))]

  def encode_many(self, texts: Sequence[str]) -> Sequence[Sequence[int] | np.ndarray]:
    return self.inner.encode_many(texts)

  def decode(self, ids: Iterable[int]) -> str:
    """Returns the text with `<extra_id_N>` for sentinels."""
    parts, pending = [], []
    for i in ids:
      if self.inner.size <= i < self.size:
        parts += [self.inner.decode(pending), f"<extra_id_{self.size - 1 - i}>"]
        pending = []
      else:
        pending.append(i)
    if not parts:
      return self.inner.decode(pending)
    return " ".join(part for part in [*parts, self.inner.decode(pending)] if part)

  def save(self, folder: epath.PathLike) -> None:
    self.inner.save(epath.Path(folder) / "inner")
    kind = {"kind": "lmjax.data.tokenizers.sentinels:Sentinels", "sentinels": self.sentinels}
    write_file(folder, "kind.json", json.dumps(kind))

  @classmethod
  def load(cls, folder: epath.Path) -> "Sentinels":
    number = Fields(read_json(folder / "kind.json"), folder / "kind.json").integer("sentinels", most=MOST)
    return cls(registry.load(folder / "inner"), number)
