"""Marian's tokenizer: a SentencePiece model for sources and one for targets, whose pieces share one vocabulary."""

import json
import re
from collections.abc import Iterable, Sequence

import sentencepiece
from etils import epath

from lmjax.data.tokenizers.base import write_file
from lmjax.data.tokenizers.settings import Settings
from lmjax.utils.errors import UserError
from lmjax.utils.files import read_bytes, read_json

FILES = ("source.spm", "target.spm", "vocab.json")
CODE = re.compile(r">>.*?<<")  # of the language to translate into, before a source


class Marian:
  """Reads sources, and writes targets; `encode` is of sources.

  source, target: SentencePiece models. vocabulary: {piece: id}. names: of the special tokens, by role: eos, unk, pad.
  """

  def __init__(self, source: bytes, target: bytes, vocabulary: dict[str, int], names: dict[str, str]):
    if not source or not target:  # which the library takes for no model yet
      raise UserError("tokenizer: a SentencePiece model is empty")
    self.source, self.target, self.vocabulary, self.names = source, target, vocabulary, names
    self._source, self._target = (sentencepiece.SentencePieceProcessor(model_proto=model) for model in (source, target))
    missing = [name for name in names.values() if name not in vocabulary]
    if missing:
      raise UserError(f"tokenizer: vocab.json does not have the special token {missing[0]!r}")
    roles = {role: vocabulary[name] for role, name in names.items()}
    self.end, self.unknown, self.start = roles["eos"], roles["unk"], roles["pad"]  # decoding starts from the padding
    self.size = max(vocabulary.values()) + 1
    self.special = {*roles.values()}
    self._pieces = {number: piece for piece, number in vocabulary.items()}

  def encode(self, text: str, parse_special: bool = False) -> list[int]:
    """Returns the ids of a source; names of special tokens in it are text, unless they are parsed.

    What a source begins with, such as `>>fra<<`, says the language to translate into where the vocabulary has it.
    """
    parts = re.split("(" + "|".join(map(re.escape, self.names.values())) + ")", text) if parse_special else [text]
    ids: list[int] = []
    for number, part in enumerate(parts):
      code = CODE.match(part)
      pieces = [part] if number % 2 else [code[0]] if code else []
      if number % 2 == 0:
        pieces += self._source.encode(part[code.end() :] if code else part, out_type=str)
      ids += [self.vocabulary.get(piece, self.unknown) for piece in pieces]
    return ids

  def encode_many(self, texts: Sequence[str]) -> list[list[int]]:
    return [self.encode(text) for text in texts]

  def decode(self, ids: Iterable[int]) -> str:
    """Returns the text of a target."""
    pieces = [self._pieces[int(i)] for i in ids if int(i) in self._pieces and int(i) not in self.special]
    return self._target.decode_pieces(pieces).replace("▁", " ")

  def save(self, folder: epath.PathLike) -> None:
    for name, content in zip(FILES, (self.source, self.target, json.dumps(self.vocabulary)), strict=True):
      write_file(folder, name, content)
    write_file(folder, "special_tokens_map.json", json.dumps({f"{r}_token": name for r, name in self.names.items()}))

  def __reduce__(self):
    return Marian, (self.source, self.target, self.vocabulary, self.names)


def load_marian(source: epath.Path, target: epath.Path, vocabulary: epath.Path) -> Marian:
  """Returns the tokenizer of two SentencePiece models and a vocabulary.

  Raises:
    UserError: sources and targets have vocabularies of their own, or the vocabulary is malformed.
  """
  settings, ids = Settings(source.parent), read_json(vocabulary)
  if settings.tokenizer.boolean("separate_vocabs", False):
    raise UserError(f"{settings.tokenizer.where}: separate_vocabs is not supported: one vocabulary for both languages")
  if not ids or not all(type(i) is int and 0 <= i < 2**24 for i in ids.values()):
    raise UserError(f"{vocabulary} must give each token an id, a whole number")
  default = dict(eos="</s>", unk="<unk>", pad="<pad>")
  names = {role: settings.name(role) or name for role, name in default.items()}
  return Marian(read_bytes(source), read_bytes(target), ids, names)
