"""Characters as ids."""

import dataclasses
import functools
import json
from collections.abc import Iterable, Sequence

from etils import epath

from lmjax.data.tokenizers.base import write_file
from lmjax.utils.fields import Fields
from lmjax.utils.files import read_json


@dataclasses.dataclass(frozen=True)
class Characters:
  """The characters of an alphabet, then one id for start and end, then one for all other characters."""

  alphabet: str

  @property
  def size(self) -> int:
    return len(self.alphabet) + 2

  @property
  def start(self) -> int:
    return len(self.alphabet)

  end = start

  @functools.cached_property
  def _ids(self) -> dict[str, int]:
    return {character: i for i, character in enumerate(self.alphabet)}

  def encode(self, text: str) -> list[int]:
    return [self._ids.get(character, len(self.alphabet) + 1) for character in text]

  def encode_many(self, texts: Sequence[str]) -> list[Sequence[int]]:
    return [self.encode(text) for text in texts]

  def decode(self, ids: Iterable[int]) -> str:
    size = len(self.alphabet)
    return "".join(self.alphabet[i] if i < size else "\ufffd" for i in ids if i != self.end)

  def save(self, folder: epath.PathLike) -> None:
    write_file(folder, "characters.json", json.dumps({"alphabet": self.alphabet}))


def train_characters(texts: Iterable[str], size: int) -> Characters:
  """Returns the characters of some texts."""
  return Characters("".join(sorted(set().union(*texts))))


def load_characters(file: epath.Path) -> Characters:
  """Returns the characters in characters.json."""
  return Characters(Fields(read_json(file), file).text("alphabet"))
